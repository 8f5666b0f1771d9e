-- SPDX-License-Identifier: Apache-2.0
-- What the store of commit d235d2a wrote, schema 3; made by dump of Python's sqlite3.
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
CREATE TABLE map_destinations (
        service TEXT NOT NULL,
        target TEXT NOT NULL,
        port INTEGER NOT NULL,
        address TEXT NOT NULL,
        state TEXT NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        PRIMARY KEY (service, target, port)
    ) WITHOUT ROWID;
INSERT INTO "map_destinations" VALUES('app','dns/api.example',443,'api.example','accepted',1800000001000000000);
INSERT INTO "map_destinations" VALUES('app','vm/ip/127.0.0.1',9,'127.0.0.1','new',1800000003000000000);
INSERT INTO "map_destinations" VALUES('app','vm/redis',6379,'127.0.0.1','learned',1800000000000000000);
INSERT INTO "map_destinations" VALUES('café''s "x"','ip/192.0.2.2',443,'192.0.2.2','new',1800000002000000000);
CREATE TABLE map_edges (
        source TEXT NOT NULL,
        target TEXT NOT NULL,
        port INTEGER NOT NULL,
        class TEXT NOT NULL,
        address TEXT NOT NULL,
        tx_bytes INTEGER NOT NULL,
        rx_bytes INTEGER NOT NULL,
        connections INTEGER NOT NULL,
        failures INTEGER NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        last_unix_ns INTEGER NOT NULL,
        PRIMARY KEY (source, target, port)
    ) WITHOUT ROWID;
INSERT INTO "map_edges" VALUES('clients/external','vm/app',80,'external','',1099511627780,104,7,0,1800000004000000000,1800000004000000005);
INSERT INTO "map_edges" VALUES('vm/app','dns/api.example',443,'external','198.51.100.7',1099511627777,101,4,1,1800000001000000000,1800000001000000005);
INSERT INTO "map_edges" VALUES('vm/app','others/external',0,'external','',1099511627781,105,8,1,1800000005000000000,1800000005000000005);
INSERT INTO "map_edges" VALUES('vm/app','vm/ip/127.0.0.1',9,'localhost','127.0.0.1',1099511627779,103,6,1,1800000003000000000,1800000003000000005);
INSERT INTO "map_edges" VALUES('vm/app','vm/redis',6379,'localhost','127.0.0.1',1099511627776,100,3,0,1800000000000000000,1800000000000000005);
INSERT INTO "map_edges" VALUES('vm/café''s "x"','ip/192.0.2.2',443,'external','192.0.2.2',1099511627778,102,5,0,1800000002000000000,1800000002000000005);
CREATE TABLE map_nodes (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        title TEXT NOT NULL,
        class TEXT NOT NULL,
        ports TEXT NOT NULL,
        first_unix_ns INTEGER NOT NULL,
        last_unix_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "map_nodes" VALUES('clients/external','clients','external clients','external','[]',1800000004000000000,1800000004000000005);
INSERT INTO "map_nodes" VALUES('dns/api.example','name','api.example','external','[]',1800000001000000000,1800000001000000005);
INSERT INTO "map_nodes" VALUES('ip/192.0.2.2','address','192.0.2.2','external','[]',1800000002000000000,1800000002000000005);
INSERT INTO "map_nodes" VALUES('others/external','others','other external destinations','external','[]',1800000005000000000,1800000005000000005);
INSERT INTO "map_nodes" VALUES('vm/app','service','app:80','self','[80]',1800000000000000000,1800000005000000005);
INSERT INTO "map_nodes" VALUES('vm/café''s "x"','service','café''s "x"','self','[]',1800000002000000000,1800000002000000005);
INSERT INTO "map_nodes" VALUES('vm/ip/127.0.0.1','address','127.0.0.1 (vm)','localhost','[]',1800000003000000000,1800000003000000005);
INSERT INTO "map_nodes" VALUES('vm/redis','service','redis:6379','localhost','[6379]',1800000000000000000,1800000000000000005);
CREATE INDEX events_by_time ON events (time_unix_ns);
COMMIT;
PRAGMA application_id = 1263685186;
PRAGMA user_version = 3;
