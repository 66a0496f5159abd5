// SPDX-License-Identifier: Apache-2.0
// A Chromium that does what it is told, a JSON object a line on stdin, and answers each with one on stdout.
// argv: the directory of playwright-core, the program, an empty directory for the profile.
import {createRequire} from "node:module";
import {createInterface} from "node:readline";

const [modules, program, profile] = process.argv.slice(2);
const {chromium} = createRequire(`${modules}/`)("playwright-core");
const context = await chromium.launchPersistentContext(profile, {
  executablePath: program, headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"]});
let page, origin, errors = [], foreign = [];

const commands = {
  async open({url, width, height, scheme, density}) {
    await page?.close();
    page = await context.newPage();
    [errors, foreign, origin] = [[], [], new URL(url).origin];
    page.on("console", message => ["error", "warning"].includes(message.type()) && errors.push(message.text()));
    page.on("pageerror", error => errors.push(String(error.stack ?? error)));
    page.on("request", request => {
      const asked = new URL(request.url());
      if (asked.protocol !== "data:" && asked.origin !== origin) foreign.push(request.url());
    });
    await page.setViewportSize({width, height});
    await page.emulateMedia({colorScheme: scheme});
    await page.goto(url);
  },
  evaluate: ({code}) => page.evaluate(code),
  press: ({key}) => page.keyboard.press(key),
  hover: ({selector, x, y}) => page.hover(selector, {position: x === undefined ? undefined : {x, y}}),
  click: ({selector}) => page.click(selector),
  shot: async ({path, full, clip}) => void await page.screenshot({path, fullPage: full, clip}),
  report: () => ({errors, foreign}),
};

for await (const line of createInterface({input: process.stdin})) {
  const command = JSON.parse(line);
  let answer;
  try {
    answer = {value: await commands[command.do](command) ?? null};
  } catch (error) {
    answer = {error: String(error)};
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await context.close();
