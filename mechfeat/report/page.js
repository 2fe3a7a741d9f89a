(function () {
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function ink() {
    var color = dark.matches ? "#c5ccd9" : "#4b5563";
    document.querySelectorAll(".plotly-graph-div").forEach(function (div) {
      Plotly.relayout(div, { "font.color": color });
    });
  }
  function fit() {
    document.querySelectorAll(".plotly-graph-div").forEach(function (div) { Plotly.Plots.resize(div); });
  }
  if (window.Plotly) { ink(); fit(); dark.addEventListener("change", ink); window.addEventListener("resize", fit); }
})();
