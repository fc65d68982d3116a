// Bundles src/ and styles/ into ../bundle/explorer.{js,css}. Each begins with a digest of the sources, by which a test
// sees that nobody forgot to build.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const FOLDERS = ["src", "styles"];
const FILES = ["build.mjs", "package.json", "package-lock.json"];

function digest() {
  const inFolders = FOLDERS.flatMap((folder) =>
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => `${entry.parentPath ?? entry.path}/${entry.name}`),
  );
  const hash = createHash("sha256");
  for (const path of [...FILES, ...inFolders].sort()) {
    hash.update(`${path}\0`).update(readFileSync(path)).update("\0");
  }
  return hash.digest("hex");
}

async function bundle(entry, licence) {
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    target: ["chrome123", "firefox120", "safari17.5"],
    jsx: "automatic",
    jsxImportSource: "preact",
    legalComments: "none",
  });
  return `/* sha256 of the sources: ${digest()} */\n${licence}${outputFiles[0].text}`;
}

const licence = `/*\nThe bundle contains Preact.\n\n${readFileSync("node_modules/preact/LICENSE", "utf8").trim()}\n*/\n`;
writeFileSync("../bundle/explorer.js", await bundle("src/main.jsx", licence));
writeFileSync("../bundle/explorer.css", await bundle("styles/main.css", ""));
