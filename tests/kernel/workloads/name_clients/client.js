// SPDX-License-Identifier: Apache-2.0
// As name_client.py. Arguments: way (lookup: the C library; resolve: c-ares), rounds, pause in seconds, port, hosts.
const net = require('net');
const dns = require('dns').promises;

const [way, rounds, pause, port, ...hosts] = process.argv.slice(2);

function talk(host, size) {
    return new Promise((resolve, reject) => {
        let received = 0;
        const there = net.connect({host, port: Number(port), allowHalfOpen: true}, () => there.end(Buffer.alloc(size)));
        there.on('data', (data) => { received += data.length; });
        there.on('end', () => there.destroy());
        there.on('error', reject);
        there.on('close', () => (received === size ? resolve() : reject(new Error(`${host}: ${received}`))));
    });
}

(async () => {
    const told = {};
    for (let turn = 0; turn < Number(rounds); turn += 1) {
        for (const [i, host] of hosts.entries()) {
            const size = 1000 + 10 * turn + i;
            await talk(way === 'resolve' ? (await dns.resolve4(host))[0] : host, size);
            const [count, bytes] = told[host] || [0, 0];
            told[host] = [count + 1, bytes + size];
        }
        await new Promise((resolve) => { setTimeout(resolve, Number(pause) * 1000); });
    }
    console.log(JSON.stringify({pid: process.pid, hosts: told}));
})();
