// SPDX-License-Identifier: Apache-2.0
// Opens pages of profiles from their files in a headless Chromium, and says what they show.
//
//   node flame.mjs CHROMIUM PICTURE TEXT PAGE...
//
// Each page is searched for the frames named TEXT. A JSON document on stdout has of each page its
// title, the text of the frame found first with its callers, the dialogs and the requests of the page.
// The picture is of the first page.
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';

const [executablePath, path, text, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--enable-unsafe-swiftshader'],
});
try {
  const said = [];
  for (const file of pages) {
    const page = await browser.newPage({ viewport: { width: 1200, height: 700 } });
    const [dialogs, requests] = [[], []];
    page.on('dialog', (dialog) => dialogs.push(dialog.message()) && dialog.dismiss());
    page.on('requestfinished', (request) => requests.push(request.url()));
    await page.goto(pathToFileURL(file).href);
    await page.getByText('Left Heavy').waitFor();
    await page.keyboard.press('Control+f');
    await page.keyboard.type(text);
    await page.keyboard.press('Enter');
    await page.getByText('This Instance').waitFor();
    if (file === pages[0]) await page.screenshot({ path });
    const shown = await page.evaluate(() => document.body.innerText);
    const elements = await page.evaluate(() => document.querySelectorAll('[onload], iframe').length);
    said.push({ title: await page.title(), shown, dialogs, requests, elements });
  }
  process.stdout.write(JSON.stringify(said));
} finally {
  await browser.close();
}
