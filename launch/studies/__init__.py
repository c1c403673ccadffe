"""The paper's findings at the demo's size: `omr study NAME`."""
