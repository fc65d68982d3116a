import { Component, render } from "preact";
import { App } from "./app.jsx";
import { unpack } from "./decode.js";
import { line } from "./tokens.js";

const VERSION = 1;

/** Shown in place of the page when there is nothing to show: what went wrong, in a sentence. */
const Trouble = ({ error }) => (
  <main class="broken" role="alert">
    <h1>This page cannot be shown</h1>
    <p>{error.message}</p>
    <p>Write it again with the version of the program that it is to be read with, or open it in a newer browser.</p>
  </main>
);

class Guarded extends Component {
  static getDerivedStateFromError = (error) => ({ error });

  render({ children }, { error }) {
    return error ? <Trouble error={error} /> : children;
  }
}

async function start(root) {
  try {
    const data = JSON.parse(document.getElementById("data").textContent);
    if (data.version !== VERSION)
      throw new Error(`the data is of version ${data.version}; this page reads version ${VERSION}`);
    const unpacked = await unpack(data);
    document.title = line(data.title);
    render(
      <Guarded>
        <App data={unpacked} />
      </Guarded>,
      root,
    );
  } catch (error) {
    render(<Trouble error={error} />, root);
  }
}

start(document.getElementById("app"));
