// Tooltips and the legend. The numbers of a chart lie beside it as JSON; names go in as text, never as markup.
const off = new Set();
const format = v => Math.abs(v) >= 1e4 ? v.toLocaleString('en', {maximumSignificantDigits: 5}) : String(+v.toPrecision(4));

for (const button of document.querySelectorAll('.legend button')) button.onclick = () => {
  const arm = +button.dataset.arm, hide = !off.has(arm);
  off[hide ? 'add' : 'delete'](arm);
  button.setAttribute('aria-pressed', !hide);
  for (const part of document.querySelectorAll('.arm-' + arm)) part.classList.toggle('off', hide);
};

for (const figure of document.querySelectorAll('figure.chart')) {
  const svg = figure.querySelector('.plot > svg');
  if (!svg) continue;
  const data = JSON.parse(figure.querySelector('script').textContent);
  const tip = figure.querySelector('.tip'), cross = svg.querySelector('.cross');
  const [x0, x1, left, right] = data.x, [y0, y1, bottom, top, log] = data.y, flat = log ? Math.log10 : v => v;
  const toX = v => left + (v - x0) / (x1 - x0) * (right - left);
  const toY = v => bottom + (flat(v) - flat(y0)) / (flat(y1) - flat(y0)) * (top - bottom);
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; xs[middle] < x ? low = middle : high = middle; }
    return x - xs[low] < xs[high] - x ? low : high;
  };
  const leave = () => { tip.hidden = true; svg.classList.remove('over'); };
  const show = event => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const px = (event.clientX - box.left) / scale, py = (event.clientY - box.top) / scale;
    const at = x0 + (px - left) / (right - left) * (x1 - x0);
    const pick = s => { const i = nearest(s.x, at); return {s, i, step: s.x[i], far: Math.abs(s.x[i] - at)}; };
    const picks = data.series.filter(s => !off.has(s.arm)).map(pick);
    if (!picks.length) return leave();
    const step = picks.reduce((a, b) => b.far < a.far ? b : a).step;
    const near = picks.filter(p => Math.abs(toX(p.step) - toX(step)) < 8 && p.s.y[p.i] !== null);
    for (const dot of svg.querySelectorAll('.dot')) dot.style.display = 'none';
    for (const p of near) {
      const dot = svg.querySelector('.dot.arm-' + p.s.arm);
      dot.setAttribute('cx', toX(p.step)); dot.setAttribute('cy', toY(p.s.y[p.i])); dot.style.display = '';
      p.away = Math.abs(toY(p.s.y[p.i]) - py);
    }
    const rows = near.sort((a, b) => a.away - b.away).slice(0, 8).sort((a, b) => b.s.y[b.i] - a.s.y[a.i]).map(p => {
      const row = document.createElement('div'), name = document.createElement('span'), value = document.createElement('b');
      name.className = 'c' + p.s.arm % 6; name.textContent = data.series.length > 1 ? p.s.name : '';
      value.textContent = format(p.s.y[p.i]);
      row.append(name, value);
      if (p.s.n && p.s.n[p.i] > 1) {
        const range = document.createElement('i');
        range.textContent = `${format(p.s.low[p.i])} to ${format(p.s.high[p.i])}, n=${p.s.n[p.i]}`;
        row.append(range);
      }
      return row;
    });
    const head = document.createElement('div');
    head.className = 'step'; head.textContent = 'step ' + step.toLocaleString('en');
    tip.replaceChildren(head, ...rows);
    tip.hidden = false; svg.classList.add('over');
    cross.setAttribute('x1', toX(step)); cross.setAttribute('x2', toX(step));
    const wide = tip.offsetWidth, middle = toX(step) * scale;
    tip.style.left = Math.max(0, Math.min(box.width - wide, middle + (middle > box.width / 2 ? -wide - 12 : 12))) + 'px';
  };
  svg.onpointermove = svg.onpointerdown = show;
  svg.onpointerleave = leave;
}
