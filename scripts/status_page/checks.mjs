// What must hold of the page whatever it shows. Each function here runs in the page, and gives a list of what is wrong.

/// Nothing is wider than the window.
export function overflow() {
  const wide = document.documentElement.clientWidth;
  const found = [];
  if (document.documentElement.scrollWidth > wide) found.push(`the page is ${document.documentElement.scrollWidth} px wide in a window of ${wide}`);
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(".unseen, .table-scroll table, svg")) continue;
    const box = element.getBoundingClientRect();
    if (box.width > 0 && (box.right > wide + 0.5 || box.left < -0.5)) found.push(`${element.tagName} ${element.id || element.className} reaches from ${Math.round(box.left)} to ${Math.round(box.right)}`);
  }
  return found.slice(0, 3);
}

/// No text lies on another.
export function overlaps() {
  const boxes = [];
  const range = document.createRange();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode;
    const element = text.parentElement;
    if (!text.data.trim() || !element.checkVisibility() || element.closest("script, style, noscript, .unseen, .table-scroll")) continue;
    range.selectNodeContents(text);
    for (const box of range.getClientRects()) boxes.push({ box, text: text.data.trim().slice(0, 20) });
  }
  boxes.sort((one, two) => one.box.top - two.box.top);
  const found = [];
  boxes.forEach(({ box, text }, at) => {
    for (let next = at + 1; next < boxes.length && boxes[next].box.top < box.bottom; next += 1) {
      const other = boxes[next].box;
      const [wide, high] = [Math.min(box.right, other.right) - Math.max(box.left, other.left), Math.min(box.bottom, other.bottom) - other.top];
      // Lines of a text may come a little closer than their boxes say.
      if (wide > 2 && high > 6) found.push(`"${text}" and "${boxes[next].text}" lie on each other`);
    }
  });
  return found.slice(0, 3);
}

/// Contrast as WCAG 2.2 counts it: 4.5 for text, 3 for large text and for what is drawn.
export function contrast() {
  const parse = (colour) => {
    const canvas = (window.swatch ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true }));
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const opacity = (element) => {
    let share = 1;
    for (let at = element; at; at = at.parentElement) share *= Number(getComputedStyle(at).opacity);
    return share;
  };
  const light = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const ratio = (colour, below, share) => {
    const [r, g, b, a] = parse(colour);
    const [one, two] = [light(over([r, g, b, a * share], below)), light(below)];
    return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
  };
  const found = new Set();
  let looked = 0;
  const judge = (what, got, least) => {
    looked += 1;
    if (got < least) found.add(`${what}: contrast ${got.toFixed(2)}, less than ${least}`);
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    judge(`${element.tagName} ${element.className.baseVal ?? element.className} "${walk.currentNode.data.trim().slice(0, 20)}"`, ratio(colour, ground(element), opacity(element)), large ? 3 : 4.5);
  }
  for (const drawn of document.querySelectorAll(".plot .line")) judge(`line ${drawn.dataset.key}`, ratio(getComputedStyle(drawn).stroke, ground(drawn), opacity(drawn)), 3);
  for (const drawn of document.querySelectorAll(".bar i, .dot, .legend i")) {
    if (!drawn.checkVisibility()) continue;
    const colour = drawn.matches(".legend i") ? getComputedStyle(drawn).color : getComputedStyle(drawn).backgroundColor;
    judge(drawn.className || drawn.parentElement.className, ratio(colour, ground(drawn.parentElement), 1), 3);
  }
  if (looked < 10) found.add(`only ${looked} texts were looked at`);
  return [...found].slice(0, 4);
}

/// What a reader without a picture needs: names for what can be focused, one h1, labels.
export function names() {
  const found = [];
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (!document.documentElement.lang) found.push("no language");
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
  if (new Set(ids).size !== ids.length) found.push("an id is there twice");
  for (const element of document.querySelectorAll("button, a, input, [tabindex], [role=meter], [role=progressbar]")) {
    if (!element.checkVisibility()) continue;
    const name = element.getAttribute("aria-label") || element.textContent.trim() || [...(element.labels ?? [])].map((label) => label.textContent).join("");
    if (!name) found.push(`${element.tagName} ${element.id || element.className}: no name`);
  }
  return found;
}

/// The lines of the charts: how many points each has, and how far it reaches on the screen.
export function lines() {
  return Object.fromEntries([...document.querySelectorAll(".plot .line")].map((line) => {
    const box = line.getBoundingClientRect();
    const d = line.getAttribute("d");
    return [line.dataset.key, { d, points: (d.match(/[ML]/g) ?? []).length, runs: (d.match(/M/g) ?? []).length, width: box.width, height: box.height, length: line.getTotalLength() }];
  }));
}

/// What is to be read on the page, what is not shown left out.
export const read = () => document.body.innerText;

export const violations = () => window.violations;

/// Asks at once, in place of waiting for the next time: what the page does when its tab comes into view.
export const poke = () => document.dispatchEvent(new Event("visibilitychange"));

export const centre = (selector) => {
  const element = document.querySelector(selector);
  element.scrollIntoView({ block: "center" });
  const { left, top, width, height } = element.getBoundingClientRect();
  return { x: left + width / 2, y: top + height / 2, width, left };
};
