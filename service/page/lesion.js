// The panel for one lesion: /classify and /similar.
import { fetchUrl, get, post } from "./api.js";
import { clearAnswer, label, leftOut, metadataTable, otherModel, prevalence, problemNotice, qualityNotice, trace, warningsNotice } from "./answer.js";
import { chip, el, measured, percent, spaced, track } from "./dom.js";
import { clearMarks, fieldset, markField, readRecord } from "./form.js";
import { addImages, dropzone, shot } from "./images.js";

const HITS = 8;

export function startLesion(panel, site) {
  const form = panel.querySelector("form");
  const results = panel.querySelector(".results");
  const empty = results.firstElementChild;
  const images = [];
  const previews = el("ul", { class: "previews", "aria-label": "Chosen images" });
  let asked = 0;

  const forget = () => {
    asked += 1;
    clearAnswer(form, results, empty, images);
  };
  const showImages = () => {
    forget();
    previews.replaceChildren(...images.map((image, position) => el("li", {}, shot(image),
      el("button", { type: "button", class: "remove", "aria-label": `Remove image ${position + 1}`,
        onclick: () => { images.splice(position, 1); showImages(); } }, "×"))));
  };
  dropzone(form.querySelector(".drop"), {
    title: "Choose or drop images",
    hint: `of the same lesion, at most ${site.model.max_images}; ${site.model.image_formats.join(", ")}`,
    limit: site.model.max_images,
    added: (more) => { const room = addImages(images, more, site.model.max_images); showImages(); return room; },
  });
  form.querySelector(".drop").append(previews);
  form.querySelector(".fields").replaceChildren(...["lesion", "patient"].map((level) =>
    fieldset(level === "lesion" ? "The lesion" : "The patient", site.fields.filter((field) => field.level === level))).filter(Boolean));

  form.addEventListener("input", forget);
  form.addEventListener("reset", () => {
    images.length = 0;
    showImages();
    clearMarks(form);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const turn = ++asked;
    const button = form.querySelector(".primary");
    clearMarks(form);
    button.disabled = true;
    results.classList.add("busy");
    const shared = [...images.map((image) => ["image", image.file]), ["metadata", JSON.stringify(readRecord(form))]];
    const [said, found] = await Promise.allSettled([
      post("/classify", [...shared, ["extrapolate", String(form.elements.extrapolate.checked)]]),
      post("/similar", [...shared, ["k", String(HITS)]]),
    ]);
    if (turn !== asked) return;
    results.classList.remove("busy");
    button.disabled = !images.length;
    if (said.status === "rejected") {
      results.replaceChildren(problemNotice(said.reason));
      markField(form, said.reason);
      return;
    }
    const other = otherModel(said.value, site.model);
    results.replaceChildren(...other ? [other]
      : [...show(said.value, site), neighbours(found, said.value, site), trace(said.value)]);
    results.scrollIntoView({ block: "nearest" });
  });
}

function show(answer, site) {
  const malignant = new Set(site.model.malignant_labels);
  const assessment = answer.status === "answered"
    ? assessed(answer, site, malignant)
    : qualityNotice(answer.quality);
  const table = el("section", { class: "card" }, el("h2", {}, "What was known"), metadataTable(answer.metadata, site.units));
  const notice = warningsNotice(answer.warnings, answer.status === "answered" ? leftOut(answer.quality, (index) => `Image ${index + 1}`) : []);
  return [assessment, notice, table].filter(Boolean);
}

function assessed(answer, site, malignant) {
  const ranked = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const coverage = site.coverage(answer.metadata);
  return el("section", { class: "card" },
    el("div", { class: "headline" },
      el("div", {},
        el("h2", {}, "Probability of malignancy"),
        el("div", { class: "figure" }, percent(answer.malignancy)),
        track(answer.malignancy, { malignant: true }),
        el("p", { class: "fine" }, prevalence(site.model)),
        el("h2", {}, "Cannot be excluded"),
        el("ul", { class: "chips" }, answer.prediction_set.map((name) => el("li", {}, chip(label(name, malignant.has(name)), malignant.has(name) ? "malignant" : "")))),
        el("p", { class: "fine" }, `the set holds the true label in ${percent(coverage)} of lesions like those of the calibration`
          + (site.model.site_prevalence === null ? "" : `, where ${percent(site.model.training_prevalence)} are malignant`))),
      el("div", {},
        el("h2", {}, `Most likely: ${spaced(answer.label)}`),
        el("ul", { class: "bars" }, ranked.map(([name, share]) => el("li", { class: malignant.has(name) ? "malignant" : "" },
          el("span", { class: "word" }, label(name, malignant.has(name))), track(share), el("span", { class: "number" }, percent(share))))),
        el("p", { class: "key" }, el("span", {}, "benign"), el("span", { class: "malignant" }, "malignant")))));
}

function neighbours(found, answer, site) {
  const card = el("section", { class: "card" }, el("h2", {}, "Similar lesions of the catalogue"));
  if (found.status === "rejected") {
    card.append(el("p", { class: "field-error" }, found.reason.message));
    return card;
  }
  const { hits } = found.value;
  if (answer.status !== "answered") card.append(el("p", { class: "fine" }, "The image cannot be assessed, so this likeness means little."));
  card.append(hits.length
    ? el("ul", { class: "hits" }, hits.map((hit) => showHit(hit, site)))
    : el("p", { class: "muted" }, "The catalogue holds no lesion to compare with."));
  card.append(el("p", { class: "fine" }, "Similar by image alone; the number is the cosine of the two embeddings."));
  return card;
}

function thumbnail(hit) {
  const image = el("img", { alt: `Lesion ${hit.lesion_id}` });
  const done = () => URL.revokeObjectURL(image.src);
  image.addEventListener("load", done);
  fetchUrl(hit.thumbnail_url).then((url) => { image.src = url; })
    .catch((problem) => image.replaceWith(el("div", { class: "none" }, problem.message)));
  return image;
}

// By what the catalogue knows of the lesion: its labels need not be the model's.
function showHit(hit, site) {
  const known = Object.entries(hit.record).filter(([, value]) => value !== null)
    .map(([name, value]) => `${typeof value === "boolean" ? `${spaced(name)}: ` : ""}${measured(value, site.units[name])}`);
  const picture = hit.thumbnail_url
    ? thumbnail(hit)
    : el("div", { class: "none" }, "no picture");
  return el("li", {}, picture,
    el("div", { class: "line" }, chip(label(hit.label ?? "no label", hit.malignant), hit.malignant ? "malignant" : ""), el("span", {}, hit.score.toFixed(3))),
    el("small", {}, known.join(", ")));
}

export const fetchSite = async () => {
  const [model, schema] = await Promise.all([get("/model"), get("/fields")]);
  const units = Object.fromEntries(schema.fields.map((field) => [field.name, field.unit]));
  const coverage = (metadata) => {
    const sources = new Set(Object.values(metadata).map((entry) => entry.source));
    const condition = ["given", "extrapolated", "missing"].find((source) => sources.has(source)) ?? "missing";
    return model.calibration[condition].coverage;
  };
  return { model, fields: schema.fields, units, coverage };
};
