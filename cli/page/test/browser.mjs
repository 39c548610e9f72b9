// The page in a real browser: Debian's Chromium, headless, against the product's server fed by cli/examples/page.rs.
//   node test/browser.mjs PROGRAM [DIRECTORY]    PROGRAM: the built example; DIRECTORY: for the book's pictures
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const [program, pictures] = process.argv.slice(2);
assert(program, 'which program? cargo build -p karst-cli --example page');
const server = spawn(program, { stdio: ['pipe', 'pipe', 'inherit'] });
const lines = createInterface({ input: server.stdout })[Symbol.asyncIterator]();
const next = async () => (await lines.next()).value;
const address = await next(), once = await next(), cluster = await next();
const say = async (command) => { server.stdin.write(`${command}\n`); assert.equal(await next(), 'ok'); };
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });

async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 850 }, reducedMotion: 'reduce', locale: 'en-GB', timezoneId: 'UTC', ...options });
  const page = await context.newPage();
  const faults = [];
  page.on('pageerror', (error) => faults.push(error.message));
  // A refused request is a line of the console, too: only where it is asked for.
  page.on('console', (message) => { if (message.type() === 'error' && !/status of 401/.test(message.text())) faults.push(message.text()); });
  page.on('request', (request) => { if (new URL(request.url()).origin !== new URL(url).origin) faults.push(`asks ${request.url()}`); });
  await page.goto(url);
  return { page, faults, context };
}
const row = (page, from, to) => page.locator(`#list [data-edge][aria-label^="${from} to ${to}:"]`);
const tests = [];
const test = (name, run) => tests.push([name, run]);

test('whoever has no secret sees nothing, and the code is good once', async () => {
  const origin = new URL(address).origin;
  for (const [headers, status] of [[{}, 401], [{ 'x-karst-token': 'x'.repeat(64) }, 401], [{ origin: 'http://evil.example' }, 403], [{ 'sec-fetch-site': 'cross-site' }, 403]]) {
    assert.equal((await fetch(`${origin}/api/graph`, { headers })).status, status, JSON.stringify(headers));
  }
  const { page, context } = await open(once);
  await page.waitForFunction(() => document.querySelector('#status').textContent.includes('prox'));
  assert.equal(new URL(page.url()).hash, '', 'the code is taken out of the address');
  const { page: second, context: other } = await open(once);
  await second.waitForFunction(() => /open the address/.test(document.querySelector('#status').textContent));
  await Promise.all([context.close(), other.close()]);
});

test('in the cluster users log in, and see their own namespaces', async () => {
  const { page, faults, context } = await open(cluster);
  await page.waitForURL(/\/login\.html$/);
  const log_in = async (token) => { await page.getByLabel('Your Kubernetes token').fill(token); await page.keyboard.press('Enter'); };
  for (const [token, said] of [['guess', /does not accept this token/], ['two words', /this is not a token/]]) {
    await log_in(token);
    await page.locator('#said', { hasText: said }).waitFor();
  }
  await log_in('bookinfo-token');
  await row(page, 'productpage-v1', 'details-v1').waitFor({ timeout: 5000 });
  await page.locator('#user', { hasText: 'viewer of bookinfo' }).waitFor();
  await row(page, 'other namespaces', 'productpage-v1').first().waitFor();
  assert.doesNotMatch(await page.locator('#list').innerText(), /gateway-istio|prometheus/);
  const kept = await page.evaluate(() => [sessionStorage.getItem('karst-token'), document.cookie, JSON.stringify(localStorage), location.href]);
  assert.match(kept[0], /^[0-9a-f]{64}$/);
  assert.equal(kept[1], '');
  assert.doesNotMatch(kept.join(), /bookinfo-token/);
  const others = await fetch(new URL('/api/graph', cluster), { headers: { 'x-karst-token': kept[0], origin: 'http://evil.example' } });
  assert.equal(others.status, 403);
  await page.getByRole('button', { name: 'Log out' }).click();
  await page.waitForURL(/\/login\.html$/);
  assert.equal((await fetch(new URL('/api/graph', cluster), { headers: { 'x-karst-token': kept[0] } })).status, 401, 'the session has ended');
  assert.deepEqual(faults, []);
  await context.close();
});

test('bookinfo appears with the right edges', async ({ page }) => {
  for (const [from, to] of [['gateway-istio', 'productpage-v1'], ['productpage-v1', 'details-v1'], ['productpage-v1', 'reviews-v1'], ['productpage-v1', 'reviews-v3'], ['reviews-v2', 'ratings-v1'], ['ratings-v1', 'mongodb-v1'], ['outside', 'gateway-istio']]) {
    await row(page, from, to).waitFor({ timeout: 5000 });
  }
  assert.equal(await row(page, 'reviews-v1', 'ratings-v1').count(), 0);
  assert.equal(await row(page, 'productpage-v1', 'waypoint').count(), 0, 'hops are left out');
  await page.getByLabel('Waypoint hops').check();
  await row(page, 'productpage-v1', 'waypoint').waitFor();
  await page.getByLabel('Waypoint hops').uncheck();
});

test('a fault turns an edge red', async ({ page }) => {
  assert.equal(await row(page, 'reviews-v2', 'ratings-v1').getAttribute('class'), 'row ok');
  await say('fault on'); await say('ticks 6');
  await page.locator('#list .row.bad', { hasText: 'ratings-v1' }).first().waitFor({ timeout: 5000 });
  await row(page, 'reviews-v2', 'ratings-v1').click();
  await page.locator('#detail .tag.bad').waitFor();
  assert.match(await page.locator('#detail').innerText(), /503/);
  await page.keyboard.press('Escape');
});

test('a denied call is shown with its policy', async ({ page }) => {
  await say('deny on'); await say('ticks 6');
  const denied = page.locator('#list .row.refused');
  await denied.waitFor({ timeout: 5000 });
  await denied.click();
  const text = await page.locator('#detail').innerText();
  assert.match(text, /denied by bookinfo\/reviews-viewer/);
  assert.match(text, /kubectl -n bookinfo get authorizationpolicy reviews-viewer/);
  assert.match(text, /GET \/reviews\/\{\*\}, port 9080, by the waypoint/);
});

test('a click is not lost when what it is on is shown anew', async ({ page }) => {
  await page.keyboard.press('Escape');
  const one = row(page, 'productpage-v1', 'details-v1');
  await one.waitFor();
  const element = await one.elementHandle();
  const { x, y, width, height } = await one.boundingBox();
  await page.mouse.move(x + width / 2, y + height / 2);
  await page.mouse.down();
  const answer = page.waitForResponse(/\/api\/graph/);
  await answer;
  await page.waitForTimeout(200);
  assert.ok(await element.evaluate((node) => node.isConnected), 'it stays');
  await page.mouse.up();
  await page.locator('#detail h2', { hasText: 'details-v1' }).waitFor({ timeout: 1000 });
  await page.keyboard.press('Escape');
  await page.waitForFunction((node) => !node.isConnected, element, { timeout: 5000 });
});

test('the book has pictures of it', async ({ page }) => {
  await page.evaluate(() => document.activeElement.blur());
  if (pictures) await page.screenshot({ path: `${pictures}/dashboard-light.png` });
  await page.locator('#theme').click();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), 'dark');
  await page.waitForTimeout(300); // one frame of the graph in its new colours
  if (pictures) await page.screenshot({ path: `${pictures}/dashboard-dark.png` });
  await page.locator('#theme').click();
});

test('keys: search, arrows, table', async ({ page }) => {
  await page.keyboard.press('Escape');
  await page.keyboard.press('/');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'search');
  await page.keyboard.type('mongo');
  await page.waitForFunction(() => document.querySelectorAll('#list [data-edge]').length === 1);
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await page.locator('#detail h2', { hasText: 'mongodb-v1' }).waitFor();
  await page.keyboard.press('Escape');
  await page.keyboard.press('/');
  await page.keyboard.press('Escape');
  await page.keyboard.press('Escape');
  await page.keyboard.press('t');
  await page.locator('table caption').waitFor();
  await page.keyboard.press('ArrowDown');
  const first = await page.evaluate(() => document.activeElement.dataset.edge);
  await page.keyboard.press('ArrowDown');
  assert.notEqual(await page.evaluate(() => document.activeElement.dataset.edge), first);
  assert.equal(await page.locator('table tbody tr').count(), await page.evaluate(() => document.querySelectorAll('#list [data-edge]').length));
  await page.keyboard.press('g');
});

test('a namespace is what touches it', async ({ page }) => {
  await page.locator('#namespace').selectOption('monitoring');
  await page.waitForFunction(() => document.querySelectorAll('#list [data-edge]').length === 1);
  await row(page, 'prometheus', 'productpage-v1').waitFor();
  await page.locator('#namespace').selectOption('');
});

test('the store appears with the right edges, without a waypoint', async ({ page }) => {
  await say('store'); await say('ticks 6');
  for (const [from, to] of [['shopper-v1', 'storefront-v1'], ['storefront-v1', 'catalog-v1'], ['storefront-v1', 'checkout-v1'], ['checkout-v1', 'catalog-v1'], ['checkout-v1', 'payments-v1']]) {
    await row(page, from, to).waitFor({ timeout: 5000 });
  }
  await page.locator('#namespace').selectOption('store');
  await page.waitForFunction(() => document.querySelectorAll('#list [data-edge]').length === 6, null, { timeout: 5000 });
  await page.locator('#list .row.bad', { hasText: 'checkout-v2' }).waitFor({ timeout: 5000 });
  assert.equal(await page.locator('#list .row.bad').count(), 1, 'only the release that fails');
  await page.locator('#namespace').selectOption('');
});

test('300 services stay usable', async ({ page }) => {
  await say('services 300'); await say('ticks 6');
  await page.waitForFunction(() => document.querySelectorAll('#list [data-edge]').length > 500, null, { timeout: 15_000 });
  await page.reload();
  await page.waitForFunction(() => document.querySelectorAll('#list [data-edge]').length > 500, null, { timeout: 15_000 });
  if (process.env.SHOW) await page.screenshot({ path: process.env.SHOW });
  await page.keyboard.press('/');
  await page.keyboard.type('service-123');
  await page.waitForFunction(() => { const count = document.querySelectorAll('#list [data-edge]').length; return count > 0 && count < 20; }, null, { timeout: 10_000 });
});

let failed = 0, shared;
try {
  await say('bookinfo'); await say('ticks 1500');
  for (const [name, run] of tests) {
    const began = performance.now();
    try {
      if (run.length) shared ??= await open(address);
      await run(shared ?? {});
      assert.deepEqual(shared?.faults ?? [], [], 'the console has no errors, and nothing is asked of other hosts');
      console.log(`ok    ${name} (${Math.round(performance.now() - began)} ms)`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}: ${error.message}`);
    }
  }
} finally {
  await browser.close();
  server.kill();
}
console.log(failed ? `${failed} of ${tests.length} failed` : `${tests.length} passed`);
process.exit(failed ? 1 : 0);
