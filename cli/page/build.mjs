// Bundles src/ into dist/, which is committed and embedded in `karst`. With --check: fails if dist/ is not what this gives.
import { build } from 'esbuild';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { licences } from './licences.mjs';

// Served as they are written: the login has nothing of what is bundled.
const PLAIN = ['index.html', 'session.js', 'login.html', 'login.css', 'login.js', 'icon.svg'];
const here = dirname(fileURLToPath(import.meta.url));
const result = await build({
  absWorkingDir: here,
  entryPoints: { app: 'src/main.js', style: 'src/app.css' },
  outdir: 'dist',
  bundle: true,
  minify: true,
  format: 'esm',
  target: ['chrome109', 'firefox115', 'safari16'],
  legalComments: 'eof',
  charset: 'utf8',
  write: false,
  metafile: true,
  logLevel: 'warning',
});
const of = (name) => result.outputFiles.find((file) => file.path.endsWith(name)).contents;
const files = {
  'app.js': Buffer.from(of('app.js')),
  'app.css': Buffer.from(of('style.css')),
  ...Object.fromEntries(await Promise.all(PLAIN.map(async (name) => [name, await readFile(join(here, 'src', name))]))),
  'licences.txt': Buffer.from(await licences(here, Object.keys(result.metafile.inputs))),
};
let stale = 0;
for (const [name, content] of Object.entries(files)) {
  const path = join(here, 'dist', name);
  if (process.argv.includes('--check')) {
    const committed = await readFile(path).catch(() => Buffer.alloc(0));
    if (!committed.equals(content)) {
      console.error(`cli/page/dist/${name} is not what the sources give: run \`npm run build\` in cli/page and commit it`);
      stale = 1;
    }
  } else {
    await writeFile(path, content);
    console.log(`dist/${name} ${content.length} bytes`);
  }
}
process.exit(stale);
