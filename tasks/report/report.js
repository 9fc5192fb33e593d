"use strict";
{
  const page = JSON.parse(document.getElementById("page").textContent);
  const by = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const made = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
  document.documentElement.classList.add("has-script");

  // Which samples are shown. Pictures of extremes stand in the page once and are copied into view.
  const show = by("show"), label = by("label"), extremes = by("extreme-view"), others = by("others");
  const first = new Map();
  for (const tile of all(".tile[data-id]:not(.pair)")) if (!first.has(tile.dataset.id)) first.set(tile.dataset.id, tile);

  const arrange = () => {
    const [end, name] = show.value.split(" ");
    const wanted = (tile) => !label.value || tile.dataset.label === label.value;
    by("spread-view").hidden = Boolean(name);
    extremes.hidden = !name;
    if (others) others.hidden = true;
    for (const section of all("#spread-view section")) section.hidden = !wanted(section);
    if (!name) return;
    const score = page.scores.find((known) => known.name === name);
    const ids = page.extremes[name][(end === "worst") === score.higher ? 0 : 1];
    const tiles = ids.map((id) => first.get(id)).filter(wanted).map((tile) => {
      const copy = tile.cloneNode(true);
      copy.querySelector("figcaption").textContent = `${page.samples[tile.dataset.id].scores[name]} · ${tile.dataset.label}`;
      return copy;
    });
    extremes.querySelector(".strip").replaceChildren(...tiles);
    by("extreme-words").textContent =
      `${tiles.length} kept samples, the ${end} first: those of each label with the ${(end === "worst") === score.higher ? "lowest" : "highest"} ${name}.`;
  };
  show.addEventListener("change", arrange);
  label.addEventListener("change", arrange);
  arrange();

  const cause = by("cause");
  if (cause) {
    cause.addEventListener("change", () => {
      for (const tile of all("#refused .tile")) tile.hidden = Boolean(cause.value) && tile.dataset.cause !== cause.value;
    });
  }

  addEventListener("beforeprint", () => all("details").forEach((one) => { one.open = true; }));

  // The viewer: one sample large, or a pair side by side, among those that are in view.
  const viewer = by("viewer"), frames = viewer.querySelector(".frames"), facts = viewer.querySelector(".facts");
  const ZOOMS = [1, 2, 4, 8], MASKS = ["none", "outline", "filled"];
  let tiles = [], at = 0, zoom = 0;

  const described = (pairs) => {
    const list = made("dl");
    for (const [name, value] of pairs) list.append(made("dt", name), made("dd", value));
    return list;
  };
  const limits = (name) => {
    const [least, most] = page.scores.find((score) => score.name === name).limits;
    return (least === null ? "" : ` (at least ${least.toPrecision(3)})`) + (most === null ? "" : ` (at most ${most.toPrecision(3)})`);
  };
  const enlarge = (frame) => {
    const figure = made("figure"), inner = made("div", "", "window");
    inner.tabIndex = 0;
    inner.setAttribute("role", "region");
    inner.setAttribute("aria-label", `${frame.dataset.caption}, enlarged`);
    inner.append(frame.querySelector(".pixels").cloneNode(true));
    Object.assign(inner.dataset, { x: frame.dataset.x, y: frame.dataset.y });
    figure.append(inner, made("figcaption", frame.dataset.caption));
    return figure;
  };
  const magnify = (to) => {
    const inners = all(".window", frames);
    const middles = inners.map((one) => zoom  // of what is looked at; at first, of the lesion
      ? [(one.scrollLeft + one.clientWidth / 2) / one.scrollWidth, (one.scrollTop + one.clientHeight / 2) / one.scrollHeight]
      : [one.dataset.x, one.dataset.y]);
    zoom = Math.min(Math.max(to, 0), ZOOMS.length - 1);
    frames.style.setProperty("--zoom", ZOOMS[zoom]);
    frames.classList.toggle("magnified", zoom > 0);
    by("zoom").textContent = `${ZOOMS[zoom]}×`;
    inners.forEach((one, index) => {
      one.scrollLeft = middles[index][0] * one.scrollWidth - one.clientWidth / 2;
      one.scrollTop = middles[index][1] * one.scrollHeight - one.clientHeight / 2;
    });
  };
  const display = (index) => {
    at = (index + tiles.length) % tiles.length;
    const tile = tiles[at], known = page.samples[tile.dataset.id], shown = all("button.frame", tile);
    by("viewer-title").textContent = shown[0].dataset.caption;
    by("place").textContent = `${at + 1} / ${tiles.length}`;
    frames.replaceChildren(...shown.map(enlarge));
    facts.replaceChildren();
    const caption = tile.querySelector("figcaption");
    if (caption && caption.textContent) facts.append(made("p", caption.textContent, "reasons"));
    if (known) {
      facts.append(described(Object.entries(known.scores).map(([name, value]) => [name, value + limits(name)])));
      facts.append(described(Object.entries(known.lineage)));
    }
    magnify(0);
  };
  const mask = (change) => {
    const now = MASKS.findIndex((name) => by(`mask-${name}`).checked);
    const next = MASKS[(now + change) % MASKS.length];
    by(`mask-${next}`).checked = true;
    by("mask").textContent = `mask: ${next}`;
  };

  document.addEventListener("click", (event) => {
    const frame = event.target.closest("main button.frame");
    if (!frame) return;
    const tile = frame.closest(".tile"), list = tile.closest("#spread-view, ul");
    tiles = all(".tile", list).filter((one) => one.offsetParent !== null);
    mask(0);
    viewer.showModal();
    display(tiles.indexOf(tile));
  });
  by("previous").addEventListener("click", () => display(at - 1));
  by("next").addEventListener("click", () => display(at + 1));
  by("mask").addEventListener("click", () => mask(1));
  by("in").addEventListener("click", () => magnify(zoom + 1));
  by("out").addEventListener("click", () => magnify(zoom - 1));
  by("close").addEventListener("click", () => viewer.close());
  frames.addEventListener("dblclick", () => magnify(zoom ? 0 : 1));
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("close", () => tiles[at].querySelector("button.frame").focus());
  viewer.addEventListener("keydown", (event) => {
    const scrolls = zoom > 0 && event.target.classList.contains("window");  // arrows move the picture then
    const keys = { m: () => mask(1), "+": () => magnify(zoom + 1), "=": () => magnify(zoom + 1), "-": () => magnify(zoom - 1), 0: () => magnify(0) };
    if (!scrolls) Object.assign(keys, { ArrowLeft: () => display(at - 1), ArrowRight: () => display(at + 1) });
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
}
