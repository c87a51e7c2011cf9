// Search runs in a worker, which browsers refuse to pages that are read from the disk; there a hidden frame takes its place.
// As with a worker, messages are copies that arrive later.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      const script = inside.document.createElement("script");
      script.src = new URL(address, location.href).href;
      this.ready = new Promise((done) => { script.onload = done; });
      script.onerror = () => this.onerror?.(new ErrorEvent("error"));
      inside.document.body.append(script);
    }
    postMessage(message) {
      const inside = this.frame.contentWindow;
      this.ready.then(() => inside.onmessage({ data: inside.structuredClone(message) }));
    }
    terminate() { this.frame.remove(); }
  };
}
