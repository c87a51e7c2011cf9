// Classify images over HTTP: node client.mjs http://127.0.0.1:8000 IMAGE... (the key, if any, in VITRAIL_API_KEY).
// In a page, `classify` works as it is on a File; let its origin ask by --cors.
import { readFile } from "node:fs/promises";

export async function classify(server, image, key) {
  const headers = { "Content-Type": "application/octet-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  while (true) {
    const answer = await fetch(`${server}/predict`, { method: "POST", headers, body: image });
    if (answer.status !== 429) {
      const found = await answer.json();
      return found.results?.[0] ?? found;
    }
    const seconds = Number(answer.headers.get("Retry-After") ?? 1); // the server is full
    await new Promise((wake) => setTimeout(wake, 1000 * seconds));
  }
}

const [server, ...paths] = process.argv.slice(2);
for (const path of paths) {
  const { topk, labels, error } = await classify(server, await readFile(path), process.env.VITRAIL_API_KEY);
  const classes = (topk ?? labels ?? []).map((one) => `${one.name} ${one.probability.toFixed(4)}`);
  console.log(path, error ?? (classes.join(", ") || "no class")); // labels: of a model that gives any number of classes
}
