-- SPDX-License-Identifier: Apache-2.0
-- What the store of commit 8468b7c wrote, schema 2; made by dump of Python's sqlite3.
BEGIN TRANSACTION;
CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        time_unix_ns INTEGER NOT NULL,
        kind TEXT NOT NULL,
        severity TEXT NOT NULL,
        service TEXT NOT NULL,
        body TEXT NOT NULL,
        executable TEXT NOT NULL,
        pid INTEGER NOT NULL,
        start_ticks INTEGER NOT NULL,
        role TEXT NOT NULL,
        address TEXT NOT NULL,
        port INTEGER NOT NULL,
        peer TEXT NOT NULL,
        peer_port INTEGER NOT NULL,
        local_port INTEGER NOT NULL,
        reason TEXT NOT NULL,
        closed_by TEXT NOT NULL,
        direction TEXT NOT NULL,
        idle INTEGER NOT NULL,
        count INTEGER NOT NULL,
        tx_bytes INTEGER NOT NULL,
        rx_bytes INTEGER NOT NULL,
        age_s REAL NOT NULL,
        gap_s REAL NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        suppressed INTEGER NOT NULL
    , details TEXT NOT NULL DEFAULT '[]');
INSERT INTO "events" VALUES(11,1800000000000000000,'kernob.tcp.reset','warn','café.service','peer reset it''s "connection"','café',4711,123456,'client','api.example',443,'192.0.2.1',443,40000,'reset_mid_response','peer','receive',0,1,9007199254740993,3,1.5,0.25,0,0,'[]');
INSERT INTO "events" VALUES(12,1800000000000000001,'kernob.tcp.retransmit','info','app','7 segments','',0,0,'unknown','',0,'',0,0,'','','',1,7,0,0,-1.0,-1.0,1799999999999999995,2,'[]');
INSERT INTO "events" VALUES(13,1800000000000000002,'kernob.process.exit','error','app','died','',0,0,'unknown','',0,'',0,0,'','','',0,1,0,0,-1.0,-1.0,0,0,'[["process.exit.code", 139], ["kernob.oom", true], ["x", "\u00fc''"]]');
CREATE INDEX events_by_time ON events (time_unix_ns);
COMMIT;
PRAGMA application_id = 1263685186;
PRAGMA user_version = 2;
