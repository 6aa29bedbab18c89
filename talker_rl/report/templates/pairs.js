// The pair browser: a list that grows as it is scrolled, filters, keys, and blind A/B listening.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("pair-data").textContent);
  const $ = (id) => document.getElementById(id);
  const list = $("list"), blind = $("blind"), filters = $("filters"), search = $("search"), runs = $("run"), help = $("help");
  const SIDES = ["chosen", "rejected"];
  const CHUNK = 12; // cards per step: what is not on the screen is not in the page

  let clips = null;
  function clip(id) { // the speech is most of the page: it is read when the first clip is wanted
    clips ??= JSON.parse($("clip-data").textContent);
    return clips[id];
  }

  function make(tag, attributes, ...children) {
    const el = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in el) el[key] = value; else el.setAttribute(key, value);
    }
    el.append(...children);
    return el;
  }

  // -- filters -------------------------------------------------------------------------------------------------------
  for (const pair of data.pairs) {
    pair.ops = new Set(SIDES.flatMap((side) => pair[side].tokens.map((token) => token[0])));
    pair.words = [pair.text, ...SIDES.flatMap((side) => pair[side].tokens.map((token) => token[2]))].join(" ").toLowerCase();
  }
  const TESTS = {
    S: (p) => p.ops.has("S"), D: (p) => p.ops.has("D"), I: (p) => p.ops.has("I"),
    longer: (p) => p.chosen.codes > p.rejected.codes, shorter: (p) => p.chosen.codes < p.rejected.codes,
    cut: (p) => p.chosen.cut || p.rejected.cut,
  };
  const names = [...new Set(data.pairs.map((p) => p.run))];
  if (names.length > 1) {
    runs.hidden = false;
    runs.append(...names.map((name) => make("option", { textContent: name })));
  }
  const inRun = () => data.pairs.filter((p) => p.run === (runs.value || names[0]));

  let shown = [], at = -1;
  function filter() {
    const tests = [...filters.querySelectorAll("[aria-pressed=true]")].map((b) => TESTS[b.dataset.filter]);
    const wanted = search.value.trim().toLowerCase();
    shown = inRun().filter((p) => tests.every((test) => test(p)) && p.words.includes(wanted));
    at = -1;
    $("count").textContent = `${shown.length} of ${inRun().length} pairs`;
    list.replaceChildren();
    grow();
    if (!shown.length) list.append(make("p", { className: "soft", textContent: "No pair passes these filters." }));
  }
  filters.addEventListener("click", (event) => {
    const button = event.target.closest("[data-filter]");
    if (!button) return;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
    filter();
  });
  search.addEventListener("input", filter);
  runs.addEventListener("change", filter);

  // -- the list ------------------------------------------------------------------------------------------------------
  const visible = talkerPage.onceNear("400px", load);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) grow();
  }, { rootMargin: "600px" }).observe($("more"));

  function grow() {
    const from = list.querySelectorAll(".pair").length;
    list.append(...shown.slice(from, from + CHUNK).map((pair, i) => card(pair, from + i)));
  }

  function load(audio) { // once: a second src would stop what a quick listener has started already
    if (!audio.src) audio.src = clip(audio.dataset.clip);
  }

  function player(id, strip) { // what stands there to be heard
    if (!id) return [make("p", { className: "soft", textContent: "no speech in this page" })];
    const audio = make("audio", { controls: true, preload: "metadata", "data-clip": id });
    visible.observe(audio);
    return strip ? [audio, talkerStrip.draw(strip, audio, () => load(audio))] : [audio];
  }

  function token([op, said, heard, codes]) {
    const about = { S: `said instead of ${said}`, D: "left out", I: "added" }[op];
    const word = make("span", { className: op === "=" ? "tok" : `tok ${op}`, textContent: op === "D" ? said : heard });
    if (about) word.title = about;
    if (codes !== null) word.append(make("small", { textContent: codes, title: `${codes} codes, ${codes * 20} ms` }));
    return word;
  }

  function card(pair, index) {
    const side = (name) => {
      const it = pair[name];
      const caption = [`reward ${it.reward.toFixed(2)}`, it.wer === null ? null : `WER ${it.wer.toFixed(2)}`,
        `${it.seconds.toFixed(2)} s`, `${it.codes} codes`, it.cut ? "cut at the limit" : null];
      return make("div", { className: "clip", "data-side": name },
        make("div", { className: "label" }, `${name} `, make("span", { className: "soft", textContent: caption.filter(Boolean).join(" · ") })),
        ...player(it.clip, it.strip), make("div", { className: "said" }, ...it.tokens.map(token)));
    };
    const difference = pair.chosen.seconds - pair.rejected.seconds;
    const about = `${pair.speaker} · margin ${pair.margin.toFixed(2)} · chosen ${Math.abs(difference) < 0.005 ? "" : difference > 0 ? "+" : "−"}${Math.abs(difference).toFixed(2)} s`;
    const el = make("article", { className: "card compare pair", tabIndex: -1 },
      make("div", { className: "text" }, `${pair.text} `, make("span", { className: "soft", textContent: `· ${about}` })),
      make("div", { className: "clips" }, ...SIDES.map(side)));
    el.addEventListener("focusin", () => mark(index));
    el.addEventListener("pointerdown", () => mark(index));
    return el;
  }

  function mark(index) {
    at = index;
    list.querySelectorAll(".pair").forEach((el, i) => el.classList.toggle("at", i === at));
  }
  function move(step) {
    const to = Math.min(shown.length - 1, Math.max(0, at + step));
    if (to < 0) return;
    while (list.querySelectorAll(".pair").length <= to) grow();
    const el = list.querySelectorAll(".pair")[to];
    el.focus({ preventScroll: true });
    el.scrollIntoView({ block: "center" });
    mark(to);
  }

  // -- sound ---------------------------------------------------------------------------------------------------------
  let last = -1; // the side that space played
  function play(index) {
    const scope = blind.hidden ? list.querySelectorAll(".pair")[Math.max(at, 0)] : blind;
    const clipEl = scope?.querySelectorAll(".clip")[index];
    const audio = clipEl?.querySelector("audio");
    if (!audio) return;
    last = index;
    if (!audio.paused) { audio.pause(); return; }
    load(audio);
    audio.currentTime = 0;
    audio.play().catch(() => { /* paused again before it began */ });
  }

  // -- blind A/B -----------------------------------------------------------------------------------------------------
  // Sides and order hang on the seed and the pair alone: who opens the page again gets the same trial.
  function hash(text) { // FNV-1a with a final mix, so that every bit depends on every character
    let h = 2166136261;
    for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 16777619);
    h = Math.imul(h ^ (h >>> 15), 2246822507);
    return (h ^ (h >>> 13)) >>> 0;
  }
  let trial = 0, trials = [], votes = {}, name = "";
  const store = () => `talker-rl-votes:${data.title}:${data.seed}:${name}`;
  const sidesOf = (pair) => (hash(`${data.seed} side ${pair.id}`) & 1 ? ["rejected", "chosen"] : SIDES);

  function start() {
    name = runs.value || names[0];
    trials = inRun().filter((p) => p.chosen.clip && p.rejected.clip)
      .sort((a, b) => hash(`${data.seed} order ${a.id}`) - hash(`${data.seed} order ${b.id}`));
    const kept = JSON.parse(window.talkerPage.stored.get(store()) || "{}");
    votes = Object.fromEntries(trials.filter((p) => p.id in kept).map((p) => [p.id, kept[p.id]]));
    trial = Math.max(0, trials.findIndex((p) => !(p.id in votes)));
    filters.hidden = $("count").parentElement.hidden = true;
    list.replaceChildren(); // the labels are not on the page while one listens
    shown = [];
    blind.hidden = false;
    ask();
    blind.scrollIntoView({ block: "center" });
  }
  function leave() {
    blind.hidden = true;
    blind.replaceChildren();
    filters.hidden = $("count").parentElement.hidden = false;
    filter();
    const cast = Object.values(votes), sure = cast.filter((v) => v !== "tie");
    if (cast.length) {
      const agreed = sure.filter((v) => v === "chosen").length;
      $("count").textContent += ` · your votes agree with the scores in ${agreed} of ${sure.length}, ${cast.length - sure.length} ties`;
    }
    $("blind-start").focus();
  }
  function ask() {
    const button = (text, action, more = {}) => make("button", { type: "button", textContent: text, onclick: action, ...more });
    const foot = make("div", { className: "bar" }, button("Export votes (JSON)", exportVotes, { id: "export" }), button("Leave", leave, { id: "leave" }));
    if (!trials.length) {
      blind.replaceChildren(make("p", { textContent: "No pair of this run has speech on both sides in this page." }), foot);
      return;
    }
    const pair = trials[trial], sides = sidesOf(pair), cast = votes[pair.id];
    const wave = (side) => side.strip && { ...side.strip, marks: [] }; // words would tell which is better
    const pressed = (vote) => ({ "aria-pressed": String(cast === vote) });
    blind.replaceChildren(
      make("div", { className: "soft", role: "status", textContent: `Trial ${trial + 1} of ${trials.length} · ${Object.keys(votes).length} votes` }),
      make("div", { className: "text", textContent: pair.text }),
      make("div", { className: "clips" }, ...["A", "B"].map((letter, i) => make("div", { className: "clip" },
        make("div", { className: "label", textContent: letter }), ...player(pair[sides[i]].clip, wave(pair[sides[i]]))))),
      make("div", { className: "votes" },
        button("A is better", () => vote(sides[0]), pressed(sides[0])), button("a tie", () => vote("tie"), pressed("tie")),
        button("B is better", () => vote(sides[1]), pressed(sides[1]))),
      make("div", { className: "bar" }, button("previous", () => turn(-1)), button("next", () => turn(1))), foot);
  }
  function turn(step) {
    trial = Math.min(trials.length - 1, Math.max(0, trial + step));
    ask();
  }
  function vote(choice) {
    if (!trials.length) return;
    votes[trials[trial].id] = choice;
    window.talkerPage.stored.set(store(), JSON.stringify(votes));
    turn(1);
  }
  function exportVotes() {
    const rows = trials.filter((p) => p.id in votes).map((p) => ({
      pair_id: p.id, prompt_id: p.prompt, chosen_id: p.chosen.id, rejected_id: p.rejected.id, vote: votes[p.id],
      chosen_was: sidesOf(p)[0] === "chosen" ? "A" : "B",
    }));
    const file = { format: "talker-rl-votes-1", run: name, seed: data.seed, votes: rows };
    const url = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
    make("a", { href: url, download: `votes-${name.replaceAll("/", "-")}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }
  $("blind-start").addEventListener("click", start);

  // -- keys ----------------------------------------------------------------------------------------------------------
  const browse = {
    j: () => move(1), k: () => move(-1), c: () => play(0), r: () => play(1),
    "/": () => { search.focus(); search.scrollIntoView({ block: "center" }); },
  };
  const listen = {
    j: () => turn(1), k: () => turn(-1), 1: () => play(0), 2: () => play(1),
    a: () => trials.length && vote(sidesOf(trials[trial])[0]), b: () => trials.length && vote(sidesOf(trials[trial])[1]),
    t: () => vote("tie"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const keys = blind.hidden ? browse : listen;
    let action = event.key === "?" ? () => help.showModal() : keys[event.key];
    if (event.key === " " && event.target.closest("#browser") && !event.target.matches("button, audio")) action = () => play(last === 0 ? 1 : 0);
    if (!action) return;
    event.preventDefault();
    action();
  });

  filter();
})();
