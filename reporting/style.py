"""The style sheet of the HTML report: light and dark, from 320 px wide, and on paper."""

STYLE = """
:root{
  color-scheme:light dark;
  --page:#f7f8fa;--sheet:#ffffff;--ink:#171b22;--muted:#5b6472;--hair:#e3e6eb;--soft:#f0f2f6;
  --accent:#2f6fde;--bar:#dce8fd;--up:#0a7a57;--down:#b3403a;
  --note:#eef4ff;--note-edge:#2f6fde;--warn:#fff5e6;--warn-edge:#d9730d;
  --s0:#2f6fde;--s1:#c9640a;--s2:#0c8663;--s3:#a53fb3;--s4:#b83280;--s5:#5c6b80;
}
@media screen and (prefers-color-scheme:dark){:root{
  --page:#101318;--sheet:#181c23;--ink:#e7eaf0;--muted:#9aa4b2;--hair:#2a303a;--soft:#20252e;
  --accent:#7fabff;--bar:#223a63;--up:#4fd1a5;--down:#ff8f86;
  --note:#182338;--note-edge:#7fabff;--warn:#2e2415;--warn-edge:#f5a14a;
  --s0:#7fabff;--s1:#f7a253;--s2:#4fd1a5;--s3:#d58be0;--s4:#f27db5;--s5:#a3b0c2;
}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1160px;padding:48px 28px 80px;background:var(--page);color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{margin:0;font-size:clamp(1.7rem,4.5vw,2.4rem);line-height:1.15;letter-spacing:-.022em;
  font-weight:700;overflow-wrap:anywhere}
h2{margin:0 0 18px;font-size:1.3rem;line-height:1.25;letter-spacing:-.012em;font-weight:650}
h3{margin:0 0 10px;font-size:.88rem;font-weight:600;color:var(--muted);overflow-wrap:anywhere}
p{margin:0 0 14px;max-width:74ch;overflow-wrap:anywhere}
.subtitle{margin:10px 0 0;color:var(--muted);font-size:1.02rem}
.small{max-width:92ch;color:var(--muted);font-size:.88rem}
small{margin-left:8px;font-size:.86em;font-weight:400;color:var(--muted)}
.note,.warning{max-width:none;padding:12px 16px;border-radius:8px;border-left:3px solid}
.note{background:var(--note);border-color:var(--note-edge)}
.warning{background:var(--warn);border-color:var(--warn-edge)}
nav{display:flex;flex-wrap:wrap;gap:6px 20px;margin-top:22px;padding-top:14px;
  border-top:1px solid var(--hair);font-size:.9rem}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
section{margin-top:28px;padding:28px;background:var(--sheet);border:1px solid var(--hair);
  border-radius:14px;scroll-margin-top:16px}
section>:last-child{margin-bottom:0}

.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;
  margin:0 0 18px}
.cards div{padding:16px 18px;background:var(--soft);border-radius:10px}
.cards dt{font-size:.84rem;font-weight:600;color:var(--muted)}
.cards dd{margin:2px 0 0;font-size:1.65rem;line-height:1.2;font-weight:680;
  letter-spacing:-.02em;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.cards .what{font-size:.8rem;font-weight:400;letter-spacing:0;color:var(--muted)}

.scroll{overflow-x:auto;margin:0 0 18px}
.long{max-height:560px;overflow-y:auto;border:1px solid var(--hair);border-radius:8px}
table{width:100%;border-collapse:separate;border-spacing:0;font-size:.92rem;
  font-variant-numeric:tabular-nums}
th,td{padding:7px 12px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--hair)}
th{font-weight:500}
thead th{color:var(--muted);font-size:.82rem;font-weight:600;background:var(--sheet)}
.groups th{color:var(--ink);text-align:center}
.edge{border-left:1px solid var(--hair)}
.long thead{position:sticky;top:0;z-index:1}
th:first-child{text-align:left;white-space:normal;min-width:9.5em;overflow-wrap:break-word}
tbody tr:last-child>*{border-bottom:0}
tbody tr:hover>*{background:var(--soft)}
.prose th,.prose td,.prose thead th{text-align:left;vertical-align:top}
.prose td{white-space:normal;overflow-wrap:anywhere;min-width:11em}
.prose th:first-child{width:13em;color:var(--muted)}
.barred{position:relative;min-width:104px}
.bar{position:absolute;left:10px;top:7px;bottom:7px;max-width:calc(100% - 20px);
  background:var(--bar);border-radius:3px}
.barred data{position:relative}
.none{color:var(--muted)}
.up{color:var(--up)}
.down{color:var(--down)}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace}
code{font-size:.86em;overflow-wrap:anywhere}
.run{display:inline-flex;align-items:center;gap:7px}
.dot{flex:none;display:inline-block;width:9px;height:9px;border-radius:50%}
.b0{background:var(--s0)}.b1{background:var(--s1)}.b2{background:var(--s2)}
.b3{background:var(--s3)}.b4{background:var(--s4)}.b5{background:var(--s5)}

.legend{display:flex;flex-wrap:wrap;gap:4px 22px;font-size:.9rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));
  gap:22px 26px;margin-bottom:18px}
figure{margin:0;min-width:0}
figcaption{font-size:.86rem;font-weight:600;margin-bottom:6px}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11px;fill:var(--muted);font-variant-numeric:tabular-nums}
.grid{stroke:var(--hair);stroke-width:1}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.hit{fill:transparent}
.hit:hover{fill:var(--ink)}
polyline.s0{stroke:var(--s0)}polyline.s1{stroke:var(--s1)}polyline.s2{stroke:var(--s2)}
polyline.s3{stroke:var(--s3)}polyline.s4{stroke:var(--s4)}polyline.s5{stroke:var(--s5)}
svg text.s0,circle.s0{fill:var(--s0)}svg text.s1,circle.s1{fill:var(--s1)}
svg text.s2,circle.s2{fill:var(--s2)}svg text.s3,circle.s3{fill:var(--s3)}
svg text.s4,circle.s4{fill:var(--s4)}svg text.s5,circle.s5{fill:var(--s5)}
svg text[class]{font-weight:650}

.pictures{padding:18px 0;border-top:1px solid var(--hair)}
.strip{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:14px;
  align-items:start}
.strip figcaption{display:flex;align-items:center;gap:7px;font-weight:500;color:var(--muted);
  overflow-wrap:anywhere}
img{display:block;max-width:100%;max-height:26rem;height:auto;border-radius:6px}

.zoom{display:block;width:100%;margin:0;padding:0;border:0;background:none;cursor:zoom-in;
  text-align:left}
.full{margin-left:auto;white-space:nowrap}
.filters{display:flex;flex-wrap:wrap;gap:10px 18px;align-items:center;margin:0 0 16px;
  font-size:.9rem}
.filters[hidden],.pictures[hidden]{display:none}
.filters label{display:flex;gap:8px;align-items:center;color:var(--muted);max-width:100%}
select,.viewer button{font:inherit;color:var(--ink);background:var(--soft);
  border:1px solid var(--hair);border-radius:8px;padding:5px 9px;min-width:0;max-width:16em}
output{color:var(--muted)}
.shade{display:block;margin:-7px -12px;padding:7px 12px;
  background:color-mix(in srgb,var(--accent) calc(var(--share)*.7),transparent)}
.viewer{width:100vw;height:100vh;max-width:none;max-height:none;margin:0;padding:0;border:0;
  background:var(--page);color:var(--ink)}
.viewer[open]{display:flex;flex-direction:column}
.viewer>div:first-child{display:flex;gap:8px;align-items:center;padding:10px 14px;flex-wrap:wrap;
  border-bottom:1px solid var(--hair)}
.viewer p{flex:1 1 10em;margin:0;max-width:none;max-height:4.7em;overflow:auto;font-size:.9rem}
.viewer>div:last-child{flex:1;overflow:auto;display:flex}
.viewer img{flex:none;margin:auto;max-width:none;max-height:none;border-radius:0}

details{margin:0 0 10px;border:1px solid var(--hair);border-radius:8px}
summary{padding:10px 14px;cursor:pointer;font-size:.92rem;font-weight:500}
pre{margin:0;padding:14px;max-height:520px;overflow:auto;border-top:1px solid var(--hair);
  font-size:.8rem;line-height:1.5}

@media(max-width:640px){
  body{padding:28px 14px 56px}
  section{padding:20px 16px;margin-top:18px;border-radius:12px}
  .cards{grid-template-columns:1fr 1fr;gap:10px}
  .cards div{padding:12px 14px}
  .cards dd{font-size:1.4rem}
  .strip{grid-template-columns:minmax(0,1fr)}
  .viewer p{flex-basis:100%}
  table{font-size:.86rem}
  th,td{padding:6px 7px}
  th:first-child{min-width:5.5em;padding-left:0}
  .long th:first-child{padding-left:10px}
  th small{display:block;margin:0}
  .barred{min-width:0}
  .bar{display:none}
  .prose thead{display:none}
  .prose tr,.prose th,.prose th:first-child,.prose td{display:block;width:auto;border:0;padding:0}
  .prose tr{padding:8px 0;border-bottom:1px solid var(--hair)}
  .prose td::before{content:attr(data-column);display:block;font-size:.78rem;color:var(--muted)}
}
@media print{
  html{color-scheme:light;print-color-adjust:exact;-webkit-print-color-adjust:exact}
  body{padding:0;background:#fff}
  section{border:0;padding:12px 0;break-inside:auto}
  nav,.filters,.full{display:none}
  .long{max-height:none}
  .scroll{overflow:visible}
  table{font-size:.76rem}
  th,td{padding:4px 7px;white-space:normal}
  h2,h3{break-after:avoid}
  tr,.pictures,figure{break-inside:avoid}
}
"""
