"""The look of the report, beside what all pages share."""

CSS = """
.pair span { color: var(--soft);
  font: 13px/1.4 "Helvetica Neue", "Arial", "Liberation Sans", sans-serif; }
.triptych { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 16px;
  margin: 14px 0 22px; overflow-x: auto; }
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
.pair { display: grid; grid-template-columns: repeat(var(--parts, 3), 1fr); gap: 2px 3px; }
.pair img { width: 100%; height: auto; display: block; }
.pair span { font-variant-numeric: tabular-nums; font-size: 12px; white-space: nowrap; }
.pair b { color: var(--accent); font-weight: 600; }
td:first-child { width: 21%; }
tr.section td { padding-top: 24px; font-weight: 600; font-size: 17px;
  border-bottom-color: var(--ink); }
td dl { display: grid; grid-template-columns: 1fr max-content; gap: 2px 14px; margin: 0; }
td dt { color: var(--soft); }
td dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
td.controls { width: 31%; }
.wide { overflow-x: auto; }
.matrix td:first-child, .matrix th:first-child { width: auto; min-width: 220px; max-width: 380px; }
.matrix th { vertical-align: bottom; min-width: 92px; }
.matrix td { font-variant-numeric: tabular-nums; }
td.value, td.control { white-space: nowrap; }
td.value { font-weight: 600; color: var(--accent); }
td.value .soft { font-weight: 400; }
.run td:first-child { width: auto; white-space: nowrap; }
.pinned td:first-child { color: var(--soft); }
.pinned td + td { text-align: left; overflow-wrap: anywhere; min-width: 200px; }
.warnings { border-left: 3px solid var(--accent); padding-left: 24px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 18px 28px; margin-top: 18px; align-items: end; }
.plots img { width: 100%; max-width: 560px; height: auto; display: block; }
h3 { font-size: 17px; font-weight: 600; margin: 28px 0 4px; }
.loss { max-width: 100%; width: 860px; }
"""
