"use strict";
{
  const by = (id) => document.getElementById(id);
  document.documentElement.classList.add("has-script");

  // Pages served by plain http have no clipboard: there, what is selected is copied.
  const copy = async (code) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(code.textContent);
    getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) throw new Error("the browser does not copy");
    getSelection().removeAllRanges();
  };
  for (const button of document.querySelectorAll("button.copy")) {
    const tool = button.getAttribute("aria-label").replace(/^Copy: /, "");
    button.addEventListener("click", async () => {
      const code = by(button.dataset.copy);
      try {
        await copy(code);
        button.textContent = "Copied";
        by("said").textContent = `Copied: ${tool}`;
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
        by("said").textContent = `Selected: ${tool}. Press Ctrl+C to copy`;
      }
      setTimeout(() => { button.textContent = "Copy"; by("said").textContent = ""; }, 4000);
    });
  }

  const find = by("find");
  if (find) {
    const cards = [...document.querySelectorAll(".card")];
    const narrow = () => {
      const words = find.value.toLowerCase().split(/\s+/);
      for (const card of cards) {
        const text = card.textContent.toLowerCase();
        card.hidden = !words.every((word) => text.includes(word));
      }
      by("found").textContent = find.value.trim() ? `${cards.filter((card) => !card.hidden).length} of ${cards.length}` : "";
    };
    find.addEventListener("input", narrow);
    narrow();
  }
}
