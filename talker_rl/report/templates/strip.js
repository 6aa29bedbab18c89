// The strip below a player: waveform, and the words on its time axis. A click on a word, or anywhere, plays from there.
(function () {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const LABELS = { pause: "‖", missing: "‖", false: "‖" }; // page.css puts − and + before those that are wrong
  const ABOUT = {
    right: (text) => `‘${text}’`,
    S: (text, wanted) => `‘${text}’, substituted for ‘${wanted}’`,
    I: (text) => `‘${text}’, inserted`,
    D: (text) => `where ‘${text}’ was left out`,
    pause: (text, wanted, seconds) => `a pause of ${seconds} s at a mark`,
    missing: (text, wanted, seconds) => `a mark with no pause (${seconds} s)`,
    false: (text, wanted, seconds) => `a false pause of ${seconds} s`,
  };

  // -- sound: one clip at a time -------------------------------------------------------------------------------------
  document.addEventListener("play", (event) => {
    document.querySelectorAll("audio").forEach((other) => { if (other !== event.target) other.pause(); });
  }, true);

  function playFrom(audio, seconds) {
    const seek = () => { audio.currentTime = seconds; };
    if (audio.readyState) seek(); else audio.addEventListener("loadedmetadata", seek, { once: true });
    audio.play().catch(() => { /* paused again before it began */ });
  }

  // -- what is drawn -------------------------------------------------------------------------------------------------
  function make(tag, className, parent) {
    const el = document.createElement(tag);
    el.className = className;
    parent.append(el);
    return el;
  }

  function outline(peaks) { // mirrored about the middle: there along the tops, back along the bottoms
    const heights = peaks.match(/../g).map((byte) => Math.max(1, Math.round(parseInt(byte, 16) / 255 * 49)));
    const top = heights.map((h, i) => `H${i}V${50 - h}`).join("");
    const bottom = heights.map((h, i) => `V${50 + h}H${i}`).reverse().join("");
    return `M0 50${top}H${heights.length}${bottom}Z`;
  }

  function waveform(peaks, parent) {
    const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
    svg.setAttribute("viewBox", `0 0 ${peaks.length / 2} 100`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", outline(peaks));
    svg.append(path);
    parent.append(svg);
  }

  // -- credit: on which steps of a sample training pushes, up or down from the middle of its lane ---------------------
  const signed = (value) => (value > 0 ? "+" : "") + value.toFixed(2);

  function lane({ stretches, full, about }, place, parent) {
    const el = make("div", "lane", parent);
    el.setAttribute("role", "img");
    el.setAttribute("aria-label", about);
    for (const [start, end, advantage] of stretches.filter((stretch) => stretch[2])) {
      const bar = make("i", advantage > 0 ? "up" : "down", el), stop = start === end;
      bar.style.setProperty("--size", Math.abs(advantage) / full);
      bar.title = `${stop ? "the stop" : `${start.toFixed(2)} to ${end.toFixed(2)} s`}: ${signed(advantage)}`;
      if (stop) { bar.classList.add("stop"); continue; }
      bar.style.left = place(start);
      bar.style.right = `calc(100% - ${place(end)})`;
    }
  }

  function word([start, end, kind, text, wanted], credit, parent) {
    const el = make("button", kind, parent);
    el.type = "button";
    el.tabIndex = -1;
    el.textContent = LABELS[kind] ?? text;
    el.dataset.start = start;
    el.dataset.end = end;
    const pushed = Math.abs(credit ?? 0) >= 0.005 ? `, credit ${signed(credit)}` : "";
    el.title = `${ABOUT[kind](text, wanted, (end - start).toFixed(2))}${pushed}, ${start.toFixed(2)} s`;
    el.setAttribute("aria-label", `play from ${el.title}`);
    return el;
  }

  // -- where words stand: each under its time, in the first row that has room for it ----------------------------------
  const strips = new WeakMap(); // waveform -> [words, their box, seconds]
  const sizes = new ResizeObserver((entries) => { // all are measured before any is moved
    const plans = entries.map(({ target, contentRect }) => {
      const [words, box, seconds] = strips.get(target);
      return [words, box, seconds, contentRect.width, words.map((el) => el.offsetWidth)];
    });
    for (const [words, box, seconds, width, widths] of plans) {
      const ends = [];
      words.forEach((el, i) => {
        const left = Math.max(0, Math.min(el.dataset.start / seconds * width, width - widths[i]));
        let row = ends.findIndex((end) => end + 3 <= left);
        if (row < 0) row = ends.length;
        ends[row] = left + widths[i];
        el.style.left = `${left}px`;
        el.style.setProperty("--row", row);
      });
      box.style.setProperty("--rows", ends.length);
    }
  });

  // -- a strip -------------------------------------------------------------------------------------------------------
  // data: seconds, peaks, marks, as report/strip.py makes them, and where there is one credit, as report/credit.py does.
  // ready() is called before the player is used.
  function draw(data, audio, ready = () => {}) {
    const el = document.createElement("div");
    el.className = "strip";
    const place = (seconds) => `${Math.min(100, seconds / data.seconds * 100)}%`;
    const wave = make("div", "wave", el);
    if (data.credit) lane(data.credit, place, el);
    const box = make("div", "words", el);
    waveform(data.peaks, wave);
    for (const [start, end, kind] of data.marks.filter((mark) => mark[2] !== "right")) {
      const region = make("i", kind, wave);
      region.style.left = place(start);
      region.style.right = `calc(100% - ${place(end)})`;
    }
    const head = make("b", "head", wave);
    head.hidden = true;
    const words = data.marks.map((mark, i) => word(mark, data.credit?.marks[i], box));

    // One stop of the Tab key for the strip, arrows within it: a page has thousands of words.
    if (words.length) {
      box.setAttribute("role", "toolbar");
      box.setAttribute("aria-label", "words by time, left and right to move, Enter to play from there");
      words[0].tabIndex = 0;
    }
    box.addEventListener("focusin", (event) => words.forEach((it) => { it.tabIndex = it === event.target ? 0 : -1; }));
    box.addEventListener("keydown", (event) => {
      const at = words.indexOf(event.target);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: words.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      words[to]?.focus();
    });
    el.addEventListener("click", (event) => {
      const chosen = event.target.closest("button"), area = wave.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - area.left) / area.width));
      ready();
      playFrom(audio, chosen ? Number(chosen.dataset.start) : share * data.seconds);
    });

    let frame = 0;
    function follow() {
      const now = audio.currentTime;
      head.hidden = now === 0;
      head.style.left = place(now);
      words.forEach((it) => it.classList.toggle("now", !audio.paused && it.dataset.start <= now && now < it.dataset.end));
      cancelAnimationFrame(frame);
      if (!audio.paused) frame = requestAnimationFrame(follow);
    }
    for (const name of ["play", "pause", "seeked", "ended"]) audio.addEventListener(name, follow);

    strips.set(wave, [words, box, data.seconds]);
    sizes.observe(wave);
    return el;
  }

  document.querySelectorAll("script.strip-data").forEach((script) => {
    script.replaceWith(draw(JSON.parse(script.textContent), script.parentElement.querySelector("audio")));
  });
  window.talkerStrip = { draw };
})();
