"use strict";
(() => {
  const written = (value, percent) =>
    percent ? `${(100 * value).toFixed(2)} %` : String(Number(value.toPrecision(5)));

  // The index of the entry of an ascending list that is nearest to a value.
  const nearest = (list, value) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (list[middle] < value) low = middle; else high = middle;
    }
    return Math.abs(list[low] - value) <= Math.abs(list[high] - value) ? low : high;
  };

  // The point of a line nearest to a place on the axis, over all its phases.
  const pointAt = (line, place) => {
    let best = null;
    for (const segment of line.segments) {
      const index = nearest(segment.step, place - segment.offset);
      const at = segment.step[index] + segment.offset;
      if (!best || Math.abs(at - place) < Math.abs(best.at - place))
        best = {at, step: segment.step[index], value: segment.value[index], phase: segment.phase};
    }
    return best;
  };

  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor");
    const outputs = figure.querySelectorAll(".legend output"), where = figure.querySelector(".note output");
    const data = JSON.parse(figure.querySelector("script").textContent);
    const clear = () => {
      cursor.hidden = true;
      for (const output of [...outputs, where]) output.textContent = "";
    };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const place = data.low + share * (data.high - data.low);
      const found = data.lines.map((line) => pointAt(line, place));
      found.forEach((point, index) => { outputs[index].textContent = written(point.value, data.percent); });
      const lead = found.reduce((a, b) => (Math.abs(b.at - place) < Math.abs(a.at - place) ? b : a));
      where.textContent = `· ${lead.phase} step ${Math.round(lead.step).toLocaleString("en")}`;
      cursor.style.left = `${(100 * (lead.at - data.low)) / (data.high - data.low)}%`;
      cursor.hidden = false;
    });
    plot.addEventListener("pointerleave", clear);
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    const source = document.getElementById(button.dataset.copy);
    const done = () => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    const select = () => {
      getSelection().selectAllChildren(source);
      if (document.execCommand("copy")) done();
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(done, select);
      else select();
    });
  }

  // A printed page shows what is folded on the screen.
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      details.dataset.folded = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details[data-folded]")) details.open = false;
  });
})();
