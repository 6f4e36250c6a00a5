// Picking images: by dropping, by the file dialog, by keyboard.
import { el } from "./dom.js";

export function shot(image) {
  const node = el("img", { class: "shot", src: image.url, alt: "" });
  node.addEventListener("error", () => {
    node.replaceWith(el("span", { class: "shot none" }, image.file.name));
  });
  return node;
}

export function dropzone(host, { title, hint, limit, added }) {
  const input = el("input", { type: "file", accept: "image/*", multiple: true, class: "unseen" });
  const zone = el("label", { class: "dropzone" }, input, el("strong", {}, title), el("small", {}, hint));
  const note = el("p", { class: "field-error", role: "alert", hidden: true });
  const take = (files) => {
    const images = [...files].map((file) => ({ file, url: URL.createObjectURL(file) }));
    const room = added(images);
    note.hidden = room >= 0;
    note.textContent = room >= 0 ? "" : `At most ${limit} images: ${-room} left out.`;
    input.value = "";
  };
  input.addEventListener("change", () => take(input.files));
  for (const name of ["dragover", "dragenter"]) {
    zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files);
  });
  host.replaceChildren(zone, note);
}

// Adds what fits under the limit and returns the room that is left, below 0 when some did not fit.
export function addImages(images, more, limit) {
  const room = limit - images.length - more.length;
  images.push(...more.slice(0, Math.max(0, limit - images.length)));
  return room;
}
