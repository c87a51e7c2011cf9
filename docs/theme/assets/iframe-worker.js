// Search runs in a worker, which browsers refuse to pages that are read from the disk; there a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const queue = [];
      this.onerror = this.onmessage = this.onmessageerror = null;
      this.post = (message) => queue.push(message);
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      const answer = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      inside.postMessage = answer;
      inside.importScripts = (...addresses) => Promise.all(addresses.map((address) => this.load(inside, address)));
      this.load(inside, url).then(() => {
        this.post = (data) => inside.dispatchEvent(Object.assign(new inside.MessageEvent("message", { data })));
        queue.forEach((message) => this.post(message));
      });
      this.terminate = () => frame.remove();
    }
    load(inside, address) {
      return new Promise((done, failed) => {
        const script = inside.document.createElement("script");
        script.src = new URL(address, location.href).href;
        script.onload = done;
        script.onerror = failed;
        inside.document.body.append(script);
      });
    }
    postMessage(message) { this.post(message); }
  };
}
