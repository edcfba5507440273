// Filters of the gallery and enlarged pictures. Without it the page shows everything it has.
'use strict';
for (const gallery of document.querySelectorAll('.gallery')) {
  const form = gallery.querySelector('.filters');
  const selects = [...form.querySelectorAll('select')];
  const members = [...gallery.querySelectorAll('.pictures')];
  const update = () => {
    let shown = 0;
    for (const member of members) {
      const tags = JSON.parse(member.dataset.tags || '{}');
      member.hidden = !selects.every(
        s => s.value === '' || (tags[s.dataset.filter] || []).includes(s.value));
      shown += !member.hidden;
    }
    form.querySelector('output').textContent = `${shown} of ${members.length}`;
  };
  form.addEventListener('change', update);
  form.addEventListener('submit', event => event.preventDefault());
  form.reset();
  form.hidden = false;
}

const viewer = document.createElement('dialog');
viewer.className = 'viewer';
viewer.setAttribute('aria-label', 'Enlarged picture');
const bar = document.createElement('div'), stage = document.createElement('div');
const caption = document.createElement('p'), image = document.createElement('img');
let opened = null, scale = 1;
const pictures = () => [...document.querySelectorAll('.zoom')].filter(b => b.offsetParent);
const resize = factor => {
  scale = factor === 0 ? fit() : Math.min(16, Math.max(.1, scale * factor));
  image.style.width = `${image.naturalWidth * scale}px`;
  image.style.height = 'auto';
};
const fit = () => Math.min(
  stage.clientWidth / image.naturalWidth, stage.clientHeight / image.naturalHeight);
const show = button => {
  opened = button;
  const source = button.querySelector('img');
  image.src = source.src;
  image.alt = source.alt;
  caption.textContent = source.alt;
  image.decode().then(() => resize(0), () => {});
};
const step = by => {
  const all = pictures(), next = all[all.indexOf(opened) + by];
  if (next) show(next);
};
const actions = [
  ['\u2212', 'Smaller (-)', () => resize(1 / 1.5)], ['+', 'Larger (+)', () => resize(1.5)],
  ['Fit', 'Fit the window (0)', () => resize(0)], ['\u2190', 'Previous picture', () => step(-1)],
  ['\u2192', 'Next picture', () => step(1)], ['Close', 'Close (Esc)', () => viewer.close()]];
bar.append(caption);
for (const [text, title, act] of actions) {
  const button = document.createElement('button');
  Object.assign(button, {type: 'button', textContent: text, title, onclick: act});
  button.setAttribute('aria-label', title);
  bar.append(button);
}
stage.append(image);
viewer.append(bar, stage);
viewer.addEventListener('keydown', event => {
  const act = {'+': () => resize(1.5), '=': () => resize(1.5), '-': () => resize(1 / 1.5),
    '0': () => resize(0), ArrowLeft: () => step(-1), ArrowRight: () => step(1)}[event.key];
  if (act && !event.ctrlKey && !event.metaKey) { act(); event.preventDefault(); }
});
viewer.addEventListener('close', () => opened && opened.focus());
stage.addEventListener('wheel', event => {
  if (event.ctrlKey) { event.preventDefault(); resize(event.deltaY < 0 ? 1.15 : 1 / 1.15); }
}, {passive: false});
document.body.append(viewer);
document.addEventListener('click', event => {
  const button = event.target.closest('.zoom');
  if (button) { viewer.showModal(); show(button); }
});
