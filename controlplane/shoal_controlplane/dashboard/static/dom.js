// Building the page. Text only ever becomes text: nothing from outside is read as markup.

/** An element; `attributes` of null or false are left out, children may be nested lists. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/**
 * Make the children of `parent` those of `items`. Elements of items that did not change stay, and
 * with them focus and selection; focus inside a changed one moves to its successor.
 */
export function keyed(parent, items, key, build) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const focused = document.activeElement;
  const lost = parent.contains(focused) ? [focused.closest("[data-key]")?.dataset.key, focused.dataset.focus] : null;
  const wanted = items.map((item) => {
    const name = key(item);
    const print = JSON.stringify(item);
    const present = old.get(name);
    if (present?.print === print) return present;
    const made = build(item);
    made.dataset.key = name;
    made.print = print;
    return made;
  });
  if (wanted.length !== parent.children.length || wanted.some((child, i) => child !== parent.children[i])) {
    parent.replaceChildren(...wanted);
    if (lost && document.activeElement !== focused) {
      const home = wanted.find((child) => child.dataset.key === lost[0]);
      const elements = home ? [...home.querySelectorAll("[data-focus]")] : [];
      elements.find((element) => element.dataset.focus === lost[1])?.focus();
    }
  }
}
