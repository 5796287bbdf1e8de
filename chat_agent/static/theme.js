// Runs before the first paint, so that a chosen theme never flashes. "auto" follows the system.
(function () {
  let theme = null;
  try { theme = localStorage.getItem("tinyseek.theme"); } catch { /* storage may be forbidden */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
