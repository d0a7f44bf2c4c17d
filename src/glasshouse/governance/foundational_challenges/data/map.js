const box=document.getElementById('filter');
box.addEventListener('input',()=>{const w=box.value.toLowerCase().split(/\s+/).filter(Boolean);
for(const r of document.querySelectorAll('tr[data-text]'))r.hidden=!w.every(x=>r.dataset.text.includes(x));
for(const d of document.querySelectorAll('details.challenge'))if(w.length)d.open=!!d.querySelector('tr[data-text]:not([hidden])');});
