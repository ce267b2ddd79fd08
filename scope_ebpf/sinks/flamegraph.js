// SPDX-License-Identifier: Apache-2.0
// Zoom and search in a flame graph whose boxes are in the document already.
// A box has data-x and data-w (its left edge and width, 0 to 1) and data-d (its depth).
(function () {
  "use strict";
  const WIDTH = 1180, LEFT = 10, CHARACTER = 6.6;
  const boxes = Array.from(document.querySelectorAll("g.box"), (g) => ({
    g: g, rect: g.querySelector("rect"), text: g.querySelector("text"),
    name: g.querySelector("title").textContent,
    x: +g.dataset.x, w: +g.dataset.w, d: +g.dataset.d,
  }));
  const status = document.getElementById("status");
  let root = boxes[0];

  function layOut(box) {
    const within = box.d >= root.d && box.x >= root.x - 1e-9 &&
      box.x + box.w <= root.x + root.w + 1e-9;
    const above = box.d < root.d && box.x <= root.x + 1e-9 &&
      box.x + box.w >= root.x + root.w - 1e-9;
    const start = above ? 0 : (box.x - root.x) / root.w;
    const width = (above ? 1 : box.w / root.w) * WIDTH;
    if (!(within || above) || width < 0.3) {
      box.g.style.display = "none";
      return;
    }
    box.g.style.display = "";
    box.g.style.opacity = above ? "0.5" : "";
    box.rect.setAttribute("x", LEFT + start * WIDTH);
    box.rect.setAttribute("width", Math.max(width - 0.3, 0.3));
    box.text.setAttribute("x", LEFT + start * WIDTH + 3);
    const room = Math.floor((width - 6) / CHARACTER), label = box.text.dataset.name;
    box.text.textContent = room < 3 ? "" :
      label.length <= room ? label : label.slice(0, room - 2) + "..";
  }

  function zoom(box) {
    root = box;
    boxes.forEach(layOut);
  }

  function search(text) {
    let pattern = null, found = 0, end = -1;
    if (text) {
      try { pattern = new RegExp(text, "i"); } catch (error) {
        status.textContent = "not a regular expression: " + text;
        return;
      }
    }
    const hits = boxes.filter((box) => pattern && box.d > 0 && pattern.test(box.text.dataset.name));
    boxes.forEach((box) => box.g.classList.toggle("hit", hits.includes(box)));
    // A box within another hit is not counted twice.
    hits.sort((a, b) => a.x - b.x || a.d - b.d).forEach((box) => {
      if (box.x >= end - 1e-9) { found += box.w; end = box.x + box.w; }
    });
    status.textContent = pattern ? "matched: " + (100 * found).toFixed(1) + " % of the time" : "";
  }

  boxes.forEach((box) => {
    box.g.addEventListener("click", () => zoom(box));
    box.g.addEventListener("mouseover", () => {
      if (!document.querySelector("g.hit")) status.textContent = box.name.split("\n")[0];
    });
  });
  document.getElementById("reset").addEventListener("click", () => zoom(boxes[0]));
  const field = document.getElementById("field");
  if (field) field.addEventListener("input", () => search(field.value));
  const button = document.getElementById("search");
  if (button) button.addEventListener("click", () => {
    search(window.prompt("Search for functions (a regular expression; empty ends it)") || "");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") zoom(boxes[0]);
  });
  zoom(boxes[0]);
})();
