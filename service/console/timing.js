// Duration of one answer by stage, from its Server-Timing header.

import { byId, make, setText, short } from "./dom.js";

/** Parse a Server-Timing header into a Map of milliseconds by stage, in its order. */
export function parseTiming(header) {
  const stages = [...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return new Map(stages.map(([, name, milliseconds]) => [name, Number(milliseconds)]));
}

/** Show the stages as a bar and as numbers. The rest of the total is time of the front. */
export function showTiming(header) {
  const stages = parseTiming(header);
  const total = stages.get("total");
  stages.delete("total");
  byId("timing").hidden = !(total > 0);
  if (!(total > 0)) return;
  const sum = [...stages.values()].reduce((subtotal, value) => subtotal + value, 0);
  const parts = [...stages, ["rest", Math.max(total - sum, 0)]];
  const width = Math.max(total, sum); // an answer in several batches reports the last batch's stages
  byId("timing-bar").replaceChildren(...parts.map(([, milliseconds], index) => {
    const part = make("div");
    part.style.width = `${(milliseconds / width) * 100}%`;
    part.style.opacity = String(1 - index * 0.13);
    return part;
  }));
  byId("timing-stages").replaceChildren(...parts.map(([name, milliseconds]) =>
    make("div", "", make("dt", "", name), make("dd", "", `${short(milliseconds)} ms`))));
  setText(byId("timing-total"), `${short(total)} ms`);
}
