// SPDX-License-Identifier: Apache-2.0
// Draws dashboards in a headless Chromium, and says what is to be seen of each panel.
//
//   node draw.mjs SCENES.json FOLDER CHROMIUM [pictures]
//
// SCENES.json is a list of dashboards with the answers to their expressions. With *pictures* FOLDER gets
// one of each; a JSON document on stdout has of each panel its text, and how many coloured pixels its data
// make. It runs in the folder of the installed packages.
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';
import { chromium } from 'playwright-core';

const [scenes, folder, executablePath, pictures] = process.argv.slice(2);

function scrollbars({ onResolve }) {
  onResolve({ filter: /^react-custom-scrollbars-2$/ }, ({ importer }) =>
    importer.endsWith('scrollbars.ts') ? undefined : { path: resolve('scrollbars.ts') }
  );
}

async function bundled() {
  const made = await build({
    entryPoints: ['page.tsx'],
    bundle: true,
    write: false,
    outdir: 'out',
    format: 'iife',
    jsx: 'automatic',
    define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
    plugins: [{ name: 'scrollbars', setup: scrollbars }],
    loader: { '.svg': 'text', '.woff2': 'empty', '.woff': 'empty', '.ttf': 'empty', '.png': 'empty' },
    logLevel: 'error',
  });
  const text = (end) => made.outputFiles.filter((f) => f.path.endsWith(end)).map((f) => f.text);
  return { script: text('.js').join(''), style: text('.css').join('') };
}

// Runs in the page: of each panel the pixels that have a colour, from a picture of the whole page.
// Text, axes and grids are grey.
async function colouredPixels(picture) {
  const image = new Image();
  image.src = `data:image/png;base64,${picture}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const counts = {};
  for (const panel of document.querySelectorAll('[id^=panel-]')) {
    const { x, y, width, height } = panel.getBoundingClientRect();
    const { data } = context.getImageData(x, y + window.scrollY, width, height);
    let coloured = 0;
    for (let at = 0; at < data.length; at += 4) {
      const rgb = [data[at], data[at + 1], data[at + 2]];
      coloured += Math.max(...rgb) - Math.min(...rgb) > 60;
    }
    counts[panel.id.slice('panel-'.length)] = coloured;
  }
  return counts;
}

// Runs in the page: of each panel and each of *colours* the runs of pixels along the row that has most
// of it: how many are of the colour and how many are not, by turns, from the first to the last.
async function runs([picture, colours]) {
  const image = new Image();
  image.src = `data:image/png;base64,${picture}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const found = {};
  for (const panel of document.querySelectorAll('[id^=panel-]')) {
    const { x, y, width, height } = panel.getBoundingClientRect();
    const { data } = context.getImageData(x, y + window.scrollY, width, height);
    const line = (colour) => {
      const wanted = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
      let best = [];
      for (let row = 0; row + 1 < height; row++) {
        const places = [];
        for (let column = 0; column + 1 < width; column++) {
          const at = 4 * (row * Math.floor(width) + column);
          if (wanted.every((value, part) => Math.abs(value - data[at + part]) < 30)) {
            places.push(column);
          }
        }
        best = places.length > best.length ? places : best;
      }
      const lengths = [];
      for (let at = 0, from = 0; at < best.length; at++) {
        if (at + 1 === best.length || best[at + 1] !== best[at] + 1) {
          lengths.push(at + 1 - from, (best[at + 1] ?? best[at] + 1) - best[at] - 1);
          from = at + 1;
        }
      }
      return lengths;
    };
    found[panel.id.slice('panel-'.length)] = colours.map(line);
  }
  return found;
}

const text = () =>
  Object.fromEntries(
    [...document.querySelectorAll('[id^=panel-]')].map((one) => [
      one.id.slice('panel-'.length),
      one.innerText,
    ])
  );

const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars'],
});
try {
  const { script, style } = await bundled();
  const page = await browser.newPage({ viewport: { width: 1616, height: 1000 } });
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error.stack)) && console.error(error.stack));
  // The page has an address, for its storage, but nothing is ever asked of a network.
  const body = `<!doctype html><html><head><style>${style}</style></head><body></body></html>`;
  await page.route('**/*', (route) => route.fulfill({ contentType: 'text/html', body }));
  await page.goto('http://localhost/');
  await page.addScriptTag({ content: script });
  const said = {};
  for (const scene of JSON.parse(readFileSync(scenes, 'utf8'))) {
    const name = scene.board.uid;
    const look = async (mode, path) => {
      await page.evaluate(([one, how]) => window.draw(one, how), [scene, mode]);
      const picture = await page.screenshot({ fullPage: true, path });
      return page.evaluate(colouredPixels, picture.toString('base64'));
    };
    if (scene.colours) {
      await page.evaluate(([one, how]) => window.draw(one, how), [scene, 'counted']);
      const picture = (await page.screenshot({ fullPage: true })).toString('base64');
      const seen = await page.evaluate(runs, [picture, scene.colours]);
      said[name] = { runs: seen, text: await page.evaluate(text) };
      continue;
    }
    const blank = await look('blank');
    const counted = await look('counted');
    said[name] = { blank, counted, text: await page.evaluate(text) };
    if (pictures) {
      await look('shown', join(folder, `${name}.png`));
    }
  }
  process.stdout.write(JSON.stringify({ errors, said }));
} finally {
  await browser.close();
}
