// Where the time of one answer went, from its Server-Timing header.

import { byId, make, short, write } from "./page.js";

/** Parse a Server-Timing header into a Map of milliseconds by stage, in its order. */
export function stagesOf(header) {
  const found = [...(header ?? "").matchAll(/([\w-]+);dur=([\d.]+)/g)];
  return new Map(found.map(([, name, milliseconds]) => [name, Number(milliseconds)]));
}

/** Show the stages as one bar and in numbers; what they leave of the total is the front's own. */
export function showTiming(header) {
  const stages = stagesOf(header);
  const total = stages.get("total");
  stages.delete("total");
  byId("timing").hidden = !(total > 0);
  if (!(total > 0)) return;
  const known = [...stages.values()].reduce((sum, one) => sum + one, 0);
  const parts = [...stages, ["rest", Math.max(total - known, 0)]];
  const whole = Math.max(total, known); // of an answer in several batches, the stages are the last one's
  byId("timing-bar").replaceChildren(...parts.map(([, milliseconds], place) => {
    const part = make("div");
    part.style.width = `${(milliseconds / whole) * 100}%`;
    part.style.opacity = String(1 - place * 0.13);
    return part;
  }));
  byId("timing-stages").replaceChildren(...parts.map(([name, milliseconds]) =>
    make("div", "", make("dt", "", name), make("dd", "", `${short(milliseconds)} ms`))));
  write(byId("timing-total"), `${short(total)} ms`);
}
