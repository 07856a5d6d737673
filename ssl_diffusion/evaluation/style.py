"""The look of the report, beside what all pages share."""

CSS = """
.pair span { color: var(--soft);
  font: 13px/1.4 "Helvetica Neue", "Arial", "Liberation Sans", sans-serif; }
.triptych { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 16px;
  margin-top: 14px; overflow-x: auto; }
.scale { position: absolute; left: 3%; bottom: 3%; height: 4px; background: #111;
  outline: 1px solid #fff; }
.scale i { position: absolute; left: 0; bottom: 7px; padding: 0 4px; white-space: nowrap;
  background: #ffffffc8; color: #111; font: 12px/1.4 "Arial", "Liberation Sans", sans-serif; }
#grid:checked ~ .triptych .cells { position: absolute; inset: 0;
  background-image: linear-gradient(to right, #111a 1px, transparent 1px),
    linear-gradient(to bottom, #111a 1px, transparent 1px); }
#native:checked ~ .triptych { grid-template-columns: repeat(3, max-content); }
#native:checked ~ .triptych img { width: auto; image-rendering: pixelated; }
#native:checked ~ .triptych .picture { width: max-content; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr));
  gap: 18px 20px; margin-top: 14px; }
.pair { display: grid; grid-template-columns: repeat(3, 1fr); gap: 2px 3px; }
.pair img { width: 100%; height: auto; display: block; }
.pair span { font-variant-numeric: tabular-nums; font-size: 12px; white-space: nowrap; }
.pair b { color: var(--accent); font-weight: 600; }
td:first-child { width: 21%; }
.run td:first-child { width: auto; white-space: nowrap; }
td.value { font-weight: 600; color: var(--accent); white-space: nowrap; }
td.value, td dd { font-variant-numeric: tabular-nums; }
tr.section td { padding-top: 24px; font-weight: 600; font-size: 17px;
  border-bottom-color: var(--ink); }
td dl { display: grid; grid-template-columns: 1fr max-content; gap: 2px 14px; margin: 0; }
td dt { color: var(--soft); }
td dd { margin: 0; text-align: right; }
td.controls { width: 31%; }
.loss { max-width: 100%; width: 860px; }
"""
