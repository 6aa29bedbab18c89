// What all pages share: light and dark, charts drawn when they come into view, tables that sort.
(function () {
  "use strict";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function onceNear(margin, action) { // an observer that does it once to each element, as that comes near the window
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        action(entry.target);
      }
    }, { rootMargin: margin });
    return observer;
  }

  // -- light and dark: the reader's choice if there is one, else the system's ----------------------------------------
  const stored = {
    get(key) { try { return localStorage.getItem(key); } catch { return null; } }, // a file may have no storage
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* then it lasts until the page is closed */ } },
  };
  const scheme = stored.get("talker-rl-scheme");
  if (scheme) root.dataset.scheme = scheme;

  function ink() { return getComputedStyle(document.body).color; }
  function paint() {
    document.querySelectorAll(".js-plotly-plot").forEach((el) => Plotly.relayout(el, { "font.color": ink() }));
  }
  dark.addEventListener("change", paint);
  const toggle = document.getElementById("scheme");
  toggle.addEventListener("click", () => {
    const now = root.dataset.scheme || (dark.matches ? "dark" : "light");
    root.dataset.scheme = now === "dark" ? "light" : "dark";
    stored.set("talker-rl-scheme", root.dataset.scheme);
    paint();
  });

  // -- charts --------------------------------------------------------------------------------------------------------
  const hidden = new Set();
  function draw(card) {
    const el = card.querySelector(".plot");
    const views = JSON.parse(card.querySelector("script").textContent);
    const select = card.querySelector("select");
    function show(view) {
      const layout = { ...view.layout, font: { ...view.layout.font, color: ink() } };
      const traces = view.data.map((t) => ({ ...t, visible: !hidden.has(t.legendgroup) }));
      Plotly.react(el, traces, layout, { displayModeBar: false, responsive: true });
    }
    show(views[0]);
    if (select) select.addEventListener("change", () => show(views[select.selectedIndex]));
  }
  const seen = onceNear("300px", draw);
  addEventListener("load", () => { // Plotly comes last in the file, so that nothing waits for it
    document.querySelectorAll("[data-chart]").forEach((card) => seen.observe(card));
  });

  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const name = button.dataset.variant;
      const shown = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(shown));
      if (shown) hidden.delete(name); else hidden.add(name);
      document.querySelectorAll(".js-plotly-plot").forEach((el) => {
        const mine = el.data.map((t, i) => (t.legendgroup === name ? i : -1)).filter((i) => i >= 0);
        if (mine.length) Plotly.restyle(el, { visible: shown }, mine);
      });
    });
  });

  // -- tables --------------------------------------------------------------------------------------------------------
  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    table.querySelectorAll("th button").forEach((button, column) => {
      button.addEventListener("click", () => {
        const head = button.parentElement;
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = Array.from(body.rows).map((row) => [row, row.cells[column].dataset.sort]);
        rows.sort(([, a], [, b]) => {
          if (a === undefined || b === undefined) return (a === undefined) - (b === undefined); // unknown comes last
          const x = Number(a), y = Number(b);
          const order = Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
          return up ? order : -order;
        });
        body.append(...rows.map(([row]) => row));
      });
    });
  });

  window.talkerPage = { stored, onceNear };
})();
