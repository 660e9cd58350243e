// The few lines that touch the document: whatever comes from outside becomes text, never markup.

export const byId = (id) => document.getElementById(id);

/** An element with a class and children, which are elements or text. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Write text where it differs, so that what is read aloud is what has changed. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show a sentence, or hide its place when there is none. */
export function say(element, sentence) {
  write(element, sentence ?? "");
  element.hidden = !sentence;
}

export const whole = new Intl.NumberFormat("en");

/** A number with about three digits that count. */
export function short(value) {
  if (!value) return "0";
  return value >= 100 ? whole.format(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2);
}

/** Display name of an attribute; a placeholder for a blank one. */
export const nameOf = (name) => (name.trim() ? name : "(no name)");
