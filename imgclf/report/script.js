"use strict";
(() => {
  const root = document.documentElement;
  const number = new Intl.NumberFormat("en");
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const showTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  dark.addEventListener("change", showTheme);
  showTheme();

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const button of table.querySelectorAll("thead button")) {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const text = button.dataset.kind === "text";
        const up = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : text;
        const key = (row) => (text ? row.cells[head.cellIndex].textContent : Number(row.cells[head.cellIndex].dataset.v));
        const order = (a, b) => (text ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
        const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b)));
        table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        table.tBodies[0].append(...rows);
      });
    }
  }

  const matrix = document.getElementById("matrix");
  if (matrix) {
    const known = JSON.parse(document.getElementById("cells").textContent);
    const cells = matrix.querySelectorAll("button[data-cell]");
    const share = (cell) => Number(cell.parentElement.style.getPropertyValue("--v"));
    const switches = document.querySelectorAll("button[data-show]");
    for (const chosen of switches) {
      chosen.addEventListener("click", () => {
        switches.forEach((other) => other.setAttribute("aria-pressed", String(other === chosen)));
        const shares = chosen.dataset.show === "share";
        cells.forEach((cell) => {
          const whole = Math.round(100 * share(cell));
          cell.textContent = shares ? (whole ? `${whole}%` : "< 1%") : number.format(cell.dataset.n);
        });
      });
    }

    const panel = document.getElementById("cell");
    const images = document.getElementById("cell-images");
    const element = (tag, text, kind) => {
      const made = document.createElement(tag);
      if (text) made.textContent = text;
      if (kind) made.className = kind;
      return made;
    };
    const tile = ([picture, confidence, ref], title, right) => {
      const figure = element("figure", "", `tile ${right ? "right" : "wrong"}`);
      const image = element("img", "", known.tiny[picture] ? "tiny" : "");
      image.src = known.pictures[picture];
      image.alt = title;
      const caption = element("figcaption");
      caption.append(element("span", percent(confidence), "confidence"), element("span", ref, "ref"));
      figure.append(image, caption);
      return figure;
    };
    cells.forEach((cell) => {
      const [row, column] = cell.dataset.cell.split(",").map(Number);
      const [truth, predicted] = [known.names[row], known.names[column]];
      cell.title = `${truth} predicted as ${predicted}: ${number.format(cell.dataset.n)} (${percent(share(cell))})`;
      cell.addEventListener("click", () => {
        matrix.querySelectorAll("[aria-expanded]").forEach((other) => other.removeAttribute("aria-expanded"));
        cell.setAttribute("aria-expanded", "true");
        const shown = known.cells[cell.dataset.cell] || [];
        const n = Number(cell.dataset.n);
        document.getElementById("cell-title").textContent = row === column ? `${truth}, classified correctly` : `${truth} predicted as ${predicted}`;
        document.getElementById("cell-note").textContent =
          `${number.format(n)} ${n === 1 ? "image" : "images"}, ${percent(share(cell))} of the class` +
          (shown.length === 0 ? "; no pictures" : shown.length < n ? `; the ${shown.length} most confident are shown` : "");
        images.replaceChildren(...shown.map((item) => tile(item, `${predicted} (${truth})`, row === column)));
        panel.hidden = false;
        panel.scrollIntoView({ block: "nearest", behavior: "smooth" });
      });
    });
  }

  let opened = [];
  const open = () => {
    const closed = [...document.querySelectorAll("details:not([open], .reference)")];
    closed.forEach((part) => { part.open = true; });
    opened.push(...closed);
  };
  const close = () => { opened.forEach((part) => { part.open = false; }); opened = []; };
  addEventListener("beforeprint", open);
  addEventListener("afterprint", close);
  const print = matchMedia("print");
  print.addEventListener("change", () => (print.matches ? open() : close()));
})();
