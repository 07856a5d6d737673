"""The look of the report: one style sheet, no font or file from elsewhere."""

CSS = """
:root { --ink: #262220; --soft: #6b625e; --line: #e4deda; --accent: #7a2048; --wash: #faf7f5; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.5;
  font: 16px/1.5 "Charter", "Bitstream Charter", "Georgia", "DejaVu Serif", serif; }
main { max-width: 1240px; margin: 0 auto; padding: 48px 32px 96px; }
h1 { font-size: 34px; line-height: 1.15; font-weight: 600; margin: 0 0 8px; }
h2 { font-size: 22px; font-weight: 600; margin: 56px 0 6px; padding-top: 14px;
  border-top: 2px solid var(--ink); }
p { max-width: 76ch; margin: 6px 0 14px; }
.lead { font-size: 18px; }
.soft, figcaption, th, .pair span, label, summary { color: var(--soft);
  font: 13px/1.4 "Helvetica Neue", "Arial", "Liberation Sans", sans-serif; }
.triptych { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 16px;
  margin-top: 14px; overflow-x: auto; }
figure { margin: 0; }
figcaption { margin-bottom: 6px; }
figcaption b { color: var(--ink); font-size: 15px; }
.picture { position: relative; line-height: 0; }
.picture img { width: 100%; height: auto; }
.scale { position: absolute; left: 3%; bottom: 3%; height: 4px; background: #111;
  outline: 1px solid #fff; }
.scale i { position: absolute; left: 0; bottom: 7px; padding: 0 4px; white-space: nowrap;
  background: #ffffffc8; font: 12px/1.4 "Arial", "Liberation Sans", sans-serif; }
label { margin-right: 22px; cursor: pointer; }
input { accent-color: var(--accent); vertical-align: -2px; }
#grid:checked ~ .triptych .cells { position: absolute; inset: 0;
  background-image: linear-gradient(to right, #111a 1px, transparent 1px),
    linear-gradient(to bottom, #111a 1px, transparent 1px); }
#native:checked ~ .triptych { grid-template-columns: repeat(3, max-content); }
#native:checked ~ .triptych img { width: auto; image-rendering: pixelated; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr));
  gap: 18px 20px; margin-top: 14px; }
.pair { display: grid; grid-template-columns: repeat(3, 1fr); gap: 2px 3px; }
.pair img { width: 100%; height: auto; display: block; }
.pair span { font-variant-numeric: tabular-nums; font-size: 12px; white-space: nowrap; }
.pair b { color: var(--accent); font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin-top: 10px; }
th { text-align: left; font-weight: 400; padding: 6px 18px 6px 0;
  border-bottom: 1px solid var(--ink); }
td { vertical-align: top; padding: 9px 18px 9px 0; border-bottom: 1px solid var(--line); }
td:first-child { width: 21%; }
td.value { font-weight: 600; color: var(--accent); white-space: nowrap; }
td.value, td dd, .run td { font-variant-numeric: tabular-nums; }
tr.section td { padding-top: 24px; font-weight: 600; font-size: 17px;
  border-bottom-color: var(--ink); }
td dl { display: grid; grid-template-columns: 1fr max-content; gap: 2px 14px; margin: 0; }
td dt { color: var(--soft); }
td dd { margin: 0; text-align: right; }
td.controls { width: 31%; }
#native:checked ~ .triptych .picture { width: max-content; }
.run td:first-child { width: auto; white-space: nowrap; }
.run td { padding: 5px 14px 5px 0; }
.run td + td { text-align: right; padding-right: 0; }
.columns { display: grid; grid-template-columns: 1fr 1.2fr 1fr; gap: 0 40px; align-items: start; }
.loss { max-width: 100%; width: 860px; }
li { max-width: 76ch; margin-bottom: 6px; }
pre { background: var(--wash); padding: 14px; overflow-x: auto; font-size: 12px; }
summary { cursor: pointer; margin: 10px 0; }
@media (max-width: 760px) { .columns { grid-template-columns: 1fr; } main { padding: 24px 16px; } }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } }
"""
