// Light or dark, before the first paint: what was chosen by the toggle, else what the system says. Holds nothing else.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("millpond-theme");
  } catch {
    // Storage is refused: the system's theme then.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
