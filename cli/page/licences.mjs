// The licences of all that the page is bundled from, as one text: MIT wants its text wherever the code goes, and the comments that a
// minifier leaves only name it. A package without a text, or one whose insides nobody has looked at, fails the build.
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';

// What packages have built into their own files, which no list of ours shows: by version, so that a new one is looked at again. Of
// cytoscape: the imports of its src/ that are not its own, and the comments `/*!` of its dist/; of cytoscape-dagre: the sources that
// its source map names, and what those depend on. Each has its text in licences/.
const INSIDE = {
  'cytoscape 3.35.0': ['cytoscape-parts', 'gl-matrix', 'heap', 'lodash'],
  'cytoscape-dagre 4.0.1': ['dagre', 'graphlib'],
};
const PACKAGE = /^(?:.*\/)?node_modules\/((?:@[^/]+\/)?[^/]+)\//;
const TEXT = /^licen[cs]e(\.(md|txt))?$/i;

// `inputs`: the files that esbuild has read. xtask/src/page.rs reads the headings.
export async function licences(here, inputs) {
  const folders = new Map();
  for (const input of inputs) {
    const found = PACKAGE.exec(input);
    if (found) folders.set(found[0], found[1]);
  }
  const sections = [];
  for (const [folder, name] of [...folders].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const { version, license } = JSON.parse(await readFile(join(here, folder, 'package.json'), 'utf8'));
    const text = (await readdir(join(here, folder))).find((file) => TEXT.test(file));
    if (!text) throw new Error(`${name} ${version} (${license}) has no text of its licence: find it, and let licences.mjs add it`);
    sections.push([`${name} ${version} (${license})`, join(here, folder, text)]);
    const inside = INSIDE[`${name} ${version}`];
    if (!inside) throw new Error(`${name} ${version}: look at what it has bundled into its own files, and say so in licences.mjs`);
    sections.push(...inside.map((part) => [`${part}, in ${name}`, join(here, 'licences', `${part}.txt`)]));
  }
  const texts = sections.map(async ([title, path]) => `-------- ${title}\n\n${(await readFile(path, 'utf8')).trim()}\n`);
  return ['The page of `karst dashboard` is bundled from these, under these licences.\n', ...(await Promise.all(texts))].join('\n');
}
