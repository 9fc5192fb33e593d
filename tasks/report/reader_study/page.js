"use strict";
{
  const FORMAT = "sonoforge-reader-answers-1", ZOOMS = [1, 2, 4], SETTLE_MS = 150;
  const page = JSON.parse(document.getElementById("page").textContent);
  const by = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const kept = `sonoforge-reader-study-${page.study}`;
  const image = by("picture"), frame = document.querySelector(".window"), said = by("said");

  const trouble = (text) => {
    by("trouble").textContent = text;
    by("trouble").hidden = !text;
  };

  // What a reader has done so far: the ids in their own order, and by place the answer and the time in view.
  const random = (below) => {
    const limit = Math.floor(2 ** 32 / below) * below;  // no remainder: every order is as likely
    for (const drawn = new Uint32Array(1); ;) if (crypto.getRandomValues(drawn)[0] < limit) return drawn[0] % below;
  };
  const shuffled = (ids) => {
    const order = [...ids];
    for (let last = order.length - 1; last > 0; last--) {
      const other = random(last + 1);
      [order[last], order[other]] = [order[other], order[last]];
    }
    return order;
  };
  const begun = () => ({
    study: page.study,
    session: [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join(""),
    reader: "", experience: "", began: new Date().toISOString(),
    order: page.rounds.flatMap(shuffled), answers: {}, spent: {}, exported: 0,
  });
  const keep = () => {
    try {
      localStorage.setItem(kept, JSON.stringify(session));
    } catch {
      trouble("This browser keeps nothing between visits: save the answers before you close the page.");
    }
  };
  const known = () => {
    try {
      const found = JSON.parse(localStorage.getItem(kept));
      return found && found.study === page.study && Array.isArray(found.order) ? found : null;
    } catch {
      return null;
    }
  };
  let session = known() || begun();
  const total = session.order.length;
  const answered = () => Object.keys(session.answers).length;
  const firstOpen = () => session.order.findIndex((_, place) => !session.answers[place]);

  // One picture in view, and how long it is.
  let at = 0, since = null, shown = false, ready = false, zoom = 0;
  const stopClock = () => {
    if (since === null) return;
    session.spent[at] = (session.spent[at] || 0) + performance.now() - since;
    since = null;
  };
  const startClock = () => {
    if (!by("reading").hidden && !document.hidden && shown && since === null) since = performance.now();
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { stopClock(); keep(); } else startClock();
  });
  addEventListener("pagehide", () => { stopClock(); if (answered()) keep(); });

  const magnify = (to) => {
    const middle = [(frame.scrollLeft + frame.clientWidth / 2) / frame.scrollWidth, (frame.scrollTop + frame.clientHeight / 2) / frame.scrollHeight];
    zoom = Math.min(Math.max(to, 0), ZOOMS.length - 1);
    frame.style.setProperty("--zoom", ZOOMS[zoom]);
    frame.classList.toggle("magnified", zoom > 0);
    by("zoom").textContent = `${ZOOMS[zoom]}×`;
    frame.scrollLeft = middle[0] * frame.scrollWidth - frame.clientWidth / 2;
    frame.scrollTop = middle[1] * frame.scrollHeight - frame.clientHeight / 2;
  };
  const view = (name) => { for (const id of ["intro", "reading", "end"]) by(id).hidden = id !== name; };
  const marked = () => {
    const given = session.answers[at];
    for (const button of all(".answer")) button.setAttribute("aria-pressed", String(Boolean(given) && given.answer === Number(button.dataset.answer)));
  };
  const display = async (place) => {
    stopClock();
    shown = ready = false;
    at = place;
    view("reading");
    magnify(0);
    by("place").textContent = `Picture ${at + 1} of ${total}`;
    by("progress").value = answered();
    by("back").disabled = at === 0;
    by("forth").disabled = !session.answers[at];
    marked();
    image.alt = `picture ${at + 1} of ${total}`;
    image.src = `data:image/png;base64,${page.pictures[session.order[place]]}`;
    await image.decode().catch(() => trouble(`Picture ${place + 1} cannot be shown: the file of this page is damaged.`));
    if (place !== at) return;
    shown = true;
    startClock();
    // A key that is struck twice must not answer a picture that nobody has seen.
    setTimeout(() => {
      if (place !== at) return;
      ready = true;
      const given = session.answers[at];
      said.textContent = `Picture ${at + 1} of ${total}${given ? `, answered ${given.answer}` : ""}`;
    }, SETTLE_MS);
  };
  const finish = () => {
    stopClock();
    view("end");
    by("saved").textContent = session.exported === answered() ? "These answers were saved already." : "";
    by("done").focus();
  };
  const answer = (value) => {
    if (!ready) return;
    stopClock();
    const before = session.answers[at];
    session.answers[at] = {
      answer: value,
      ms: Math.round(session.spent[at] || 0),
      changes: before ? before.changes + Number(before.answer !== value) : 0,
    };
    session.exported = 0;
    keep();
    if (at + 1 < total) display(at + 1);
    else if (firstOpen() >= 0) display(firstOpen());
    else finish();
  };
  const go = (step) => {
    if (step < 0 && at > 0) display(at - 1);
    else if (step > 0 && session.answers[at]) at + 1 < total ? display(at + 1) : firstOpen() < 0 && finish();
  };

  // The file: what the reader said, with a checksum against slips; the page cannot keep a secret against forgers.
  const crc32 = (text) => {
    let sum = 0xffffffff;
    for (const byte of new TextEncoder().encode(text)) {
      sum ^= byte;
      for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return ((sum ^ 0xffffffff) >>> 0).toString(16).padStart(8, "0");
  };
  const checksum = (file) => crc32([
    file.format, file.study, file.session, file.reader, file.experience, file.began, file.saved, String(file.finished), file.order.join(" "),
    ...file.answers.map((one) => [one.id, one.showing, one.place, one.answer, one.ms, one.changes].join(" ")),
  ].join("\n"));
  const exported = () => {
    const file = {
      format: FORMAT, study: session.study, session: session.session, reader: session.reader, experience: session.experience,
      began: session.began, saved: new Date().toISOString(), finished: firstOpen() < 0, order: session.order,
      answers: session.order.flatMap((id, place) => session.answers[place]
        ? [{ id, showing: session.order.indexOf(id) < place ? 2 : 1, place, ...session.answers[place] }] : []),
    };
    return { ...file, checksum: checksum(file) };
  };
  const save = () => {
    const who = (session.reader || session.session).normalize("NFKD").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "") || session.session;
    const url = URL.createObjectURL(new Blob([JSON.stringify(exported(), null, 1)], { type: "application/json" }));
    const name = `reader-study-${page.study}-${who}${firstOpen() < 0 ? "" : "-unfinished"}.json`;
    Object.assign(document.createElement("a"), { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    session.exported = answered();
    keep();
    by("saved").textContent = said.textContent = `Saved as ${name}, where this browser puts downloads.`;
  };
  const load = async (file) => {
    const found = await file.text().then(JSON.parse).catch(() => null);
    if (!found || found.format !== FORMAT || !Array.isArray(found.order) || !Array.isArray(found.answers)) trouble(`${file.name} holds no answers that this page saved.`);
    else if (found.study !== page.study) trouble(`${file.name} holds answers to another study (${found.study}).`);
    else if (found.checksum !== checksum(found)) trouble(`${file.name} was changed or cut off after it was saved.`);
    else if (!answered() || session.session === found.session || confirm("This browser holds answers of another session. Replace them by those of the file?")) {
      const answers = Object.fromEntries(found.answers.map(({ place, answer, ms, changes }) => [place, { answer, ms, changes }]));
      const spent = Object.fromEntries(found.answers.map(({ place, ms }) => [place, ms]));
      session = { ...begun(), session: found.session, reader: found.reader, experience: found.experience, began: found.began, order: found.order, answers, spent };
      keep();
      trouble("");
      introduce();
    }
    by("load").value = "";
  };

  const introduce = () => {
    view("intro");
    by("reader").value = session.reader;
    by("experience").value = session.experience;
    by("kept").hidden = by("anew").hidden = !answered();
    by("kept").textContent = `${answered()} of ${total} are answered${session.reader ? ` by ${session.reader}` : ""}.`;
    by("start").textContent = answered() ? "Go on" : "Start";
  };
  const anew = () => {
    const lost = session.exported !== answered();
    if (lost && !confirm("The answers in this browser were not saved to a file. Discard them?")) return;
    session = begun();
    keep();
    introduce();
  };
  const start = () => {
    for (const name of ["reader", "experience"]) session[name] = by(name).value.trim();
    if (!answered()) session.began = new Date().toISOString();
    keep();
    const open = firstOpen();
    if (open < 0) { finish(); return; }
    display(open);
    by("place").focus();
  };

  by("start").addEventListener("click", start);
  by("anew").addEventListener("click", anew);
  by("another").addEventListener("click", anew);
  by("review").addEventListener("click", () => display(total - 1));
  by("back").addEventListener("click", () => go(-1));
  by("forth").addEventListener("click", () => go(1));
  by("in").addEventListener("click", () => magnify(zoom + 1));
  by("out").addEventListener("click", () => magnify(zoom - 1));
  by("load").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) load(file).catch(() => trouble(`${file.name} is damaged: it does not hold what this page saves.`));
  });
  for (const button of all(".save")) button.addEventListener("click", save);
  for (const button of all(".answer")) button.addEventListener("click", () => answer(Number(button.dataset.answer)));
  for (const name of ["brightness", "contrast"]) {
    by(name).addEventListener("input", (event) => frame.style.setProperty(`--${name}`, event.target.value / 100));
  }
  document.addEventListener("keydown", (event) => {
    if (by("reading").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const keys = { "+": () => magnify(zoom + 1), "=": () => magnify(zoom + 1), "-": () => magnify(zoom - 1), 0: () => magnify(0) };
    for (const button of all(".answer")) keys[button.dataset.answer] = () => answer(Number(button.dataset.answer));
    const moves = event.target.type === "range" || (event.target === frame && zoom > 0);  // arrows do that then
    if (!moves) Object.assign(keys, { ArrowLeft: () => go(-1), ArrowRight: () => go(1) });
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  by("needed").hidden = true;
  introduce();
}
