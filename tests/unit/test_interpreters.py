# SPDX-License-Identifier: Apache-2.0
"""Interpreters are named by what they run: script, module, jar or main class, never PID or port."""

from __future__ import annotations

import pytest

from kernob.model import ProcessInfo, ProcessKey
from kernob.state.names import needs_full_args, service_of


def run_by(executable: str, *args: str) -> ProcessInfo:
    """Build a process of a login session with this executable and these arguments."""
    session = ("user.slice", "user-1000.slice", "session-3.scope")
    return ProcessInfo(ProcessKey(4711, 1, 0), executable, executable[:15], args, session)


INTERPRETED = [
    # Python
    ("python3.11", "python3 app.py", "app.py"),
    ("python3.11", "/srv/venv/bin/python /srv/shop/worker.py --queue mail", "worker.py"),
    ("python3.11", "python -u -X dev -m pkg.mod --port 8080", "pkg.mod"),
    ("python3.11", "python -uX dev -Wignore script.py", "script.py"),
    ("python3.11", "python -Im http.server 8000", "http.server"),
    ("python3.11", "python -mhttp.server", "http.server"),
    ("python3.11", "python -m shop.__main__", "shop"),
    ("python3.11", "python -m shop -c x", "shop"),
    ("python3.11", "python -c print(1)", "python"),
    ("python3.11", "python -uc print(1)", "python"),
    ("python3.11", "python3", "python"),
    ("python3.11", "python3 -", "python"),
    ("python3.11", "python3 -- -odd.py", "-odd.py"),
    ("python3.11", "python3 --check-hash-based-pycs always app.py", "app.py"),
    ("python3.11", "python3 /usr/bin/gunicorn -w 4 shop:app", "gunicorn"),
    ("python3.12", "/opt/venv/bin/python3 /opt/venv/bin/uvicorn shop:app --port 80", "uvicorn"),
    ("python3.12", "/opt/venv/bin/python3 /opt/venv/bin/celery -A shop worker", "celery"),
    ("python3.11", "python3 /srv/shop/__main__.py", "shop"),
    ("python3.11", "python3 /srv/shop/", "shop"),
    ("python3.11", "python3 .", "python"),
    ("python3.13t", "python3.13t app.py", "app.py"),
    ("pypy3.10", "pypy3 app.py", "app.py"),
    ("python3.11", "/usr/bin/env -S A=b python3 -u app.py", "app.py"),
    # Node
    ("node", "node app.js", "app.js"),
    ("node", "/usr/bin/node --inspect /srv/shop/server.js 3000", "server.js"),
    (
        "node",
        "node --inspect=0.0.0.0:9229 -r dotenv/config --max-old-space-size=4096 dist/main.js",
        "main.js",
    ),
    ("node", "node --max_old_space_size 4096 app.js", "app.js"),
    ("node", "node --some-future-option 4096 app.js", "app.js"),
    ("node", "node --require ./tracing.js --import ./a.mjs app.js", "app.js"),
    ("node", "node --enable-source-maps -e 1", "node"),
    ("node", "node inspect app.js", "app.js"),
    ("node", "node --run start", "start"),
    ("node", "node .", "node"),
    ("node", "node", "node"),
    ("nodejs", "nodejs bin/www", "www"),
    ("node", "node /usr/lib/node_modules/pm2/lib/ProcessContainerFork.js", "node"),
    # Java
    ("java", "java -jar shop.jar --server.port=8080", "shop.jar"),
    ("java", "/usr/bin/java -Xmx1g -Dx=y -jar /opt/shop/shop-1.2.jar", "shop-1.2.jar"),
    ("java", "java -cp /opt/kafka/libs/* -Xms1g kafka.Kafka server.properties", "Kafka"),
    ("java", "java -classpath a.jar:b.jar org.elasticsearch.bootstrap.Elasticsearch -d", "Elasticsearch"),
    ("java", "java --class-path=a.jar --add-opens java.base/java.lang=ALL-UNNAMED com.acme.Shop", "Shop"),
    ("java", "java -cp a.jar com.acme.Main", "com.acme.Main"),
    ("java", "java org.apache.catalina.startup.Bootstrap start", "org.apache.catalina.startup.Bootstrap"),
    ("java", "java -p mods -m shop.core/com.acme.Worker", "Worker"),
    ("java", "java --module-path mods --module shop.core", "shop.core"),
    ("java", "java /tmp/Hello.java", "Hello.java"),
    ("java", "java -version", "java"),
    # Ruby
    ("ruby2.7", "ruby -W0 -I lib -r bundler/setup bin/worker.rb", "worker.rb"),
    ("ruby3.1", "ruby -e puts", "ruby"),
    ("ruby3.1", "ruby /usr/local/bin/bundle exec puma -C config/puma.rb", "puma"),
    ("ruby3.1", "ruby /usr/local/bin/bundle install", "bundle"),
    ("ruby3.1", "ruby --disable gems x.rb", "x.rb"),
    # PHP
    ("php8.2", "php /var/www/shop/artisan queue:work", "artisan"),
    ("php8.2", "php -d memory_limit=1G -f job.php", "job.php"),
    ("php8.2", "php -r sleep(1);", "php"),
    ("php8.2", "php -S 0.0.0.0:8000 -t public", "php"),
    ("php8.2", "php -S 0.0.0.0:8000 router.php", "router.php"),
    ("php8.2", "php --define a=b --file job.php", "job.php"),
    ("php-fpm8.2", "php-fpm: pool www", "php-fpm8.2"),
    # Perl
    ("perl", "/usr/bin/perl -w -T /usr/sbin/spamd -d", "spamd"),
    ("perl", "perl -Ilib -MPOSIX -I more daemon.pl", "daemon.pl"),
    ("perl", "perl -0777 -ne print", "perl"),
    ("perl5.36.0", "perl -we sleep", "perl"),
    # Shells
    ("bash", "bash /root/backup.sh --all", "backup.sh"),
    ("bash", "bash -euo pipefail -O nullglob ./deploy.sh", "deploy.sh"),
    ("bash", "bash --rcfile x --login run.sh", "run.sh"),
    ("bash", "bash -c ./x.sh", "bash"),
    ("bash", "bash -ec ./x.sh", "bash"),
    ("bash", "-bash", "bash"),
    ("bash", "bash", "bash"),
    ("bash", "bash /dev/fd/63", "bash"),
    ("python3.11", "python3 /dev/stdin", "python"),
    ("bash", "bash -s a b", "bash"),
    ("dash", "/bin/sh /etc/cron.daily/report", "report"),
    ("dash", "sh -c curl", "sh"),
    ("zsh", "zsh +x job.zsh", "job.zsh"),
    ("busybox", "sh /root/run.sh", "run.sh"),
    ("busybox", "wget http://x/", "wget"),
    ("busybox", "/bin/busybox nc -l 80", "nc"),
    # Others that run what they are given
    ("deno", "deno run -A --allow-net server.ts", "server.ts"),
    ("deno", "deno eval 1", "deno"),
    ("bun", "bun run server.ts", "server.ts"),
    ("bun", "bun --port 80 index.ts", "index.ts"),
    ("dotnet", "dotnet /srv/shop/Shop.Api.dll --urls http://x", "Shop.Api.dll"),
    ("dotnet", "dotnet run", "dotnet"),
    # Not interpreters
    ("nginx", "nginx: worker process", "nginx"),
    ("postgres", "postgres: writer process", "postgres"),
    ("redis-server", "/usr/bin/redis-server 127.0.0.1:6379", "redis-server"),
    ("node_exporter", "node_exporter --web.listen-address=:9100", "node_exporter"),
    ("ssh", "ssh host", "ssh"),
    ("sshd-session", "sshd-session: root@pts/0", "sshd"),
    ("python-launcher", "python-launcher x.py", "python-launcher"),
]


@pytest.mark.parametrize(("executable", "command", "name"), INTERPRETED, ids=[row[1] for row in INTERPRETED])
def test_an_interpreter_is_named_by_what_it_runs(executable: str, command: str, name: str) -> None:
    """Options are skipped as the interpreter's manual says; script, module, jar or class remains."""
    assert service_of(run_by(executable, *command.split())) == name


@pytest.mark.parametrize(
    ("executable", "title", "name"),
    [
        ("python3.11", "gunicorn: master [shop.wsgi]", "gunicorn"),
        ("python3.11", "gunicorn: worker [shop.wsgi]", "gunicorn"),
        ("python3.11", "[celeryd: worker1@host:MainProcess] -active- (worker -A shop)", "celeryd"),
        ("python3.11", "python3 /srv/shop/app.py: worker 3", "app.py"),
        ("ruby3.1", "puma 5.6.4 (tcp://0.0.0.0:3000) [shop]", "puma"),
        ("ruby3.1", "puma: cluster worker 0: 4711 [shop]", "puma"),
        ("ruby3.1", "sidekiq 6.5.1 shop [0 of 10 busy]", "sidekiq"),
        ("node", "node /srv/shop/server.js", "server.js"),
        ("node", "PM2 v5.3.0: God Daemon (/root/.pm2)", "PM2"),
        ("node", "npm run start", "npm"),
        ("node", "shop-api", "shop-api"),
        ("perl", "spamd child", "spamd"),
        ("python3.11", "8080", "python"),
        ("python3.11", "***", "python"),
        ("bash", "/bin/bash /root/backup.sh", "backup.sh"),
    ],
)
def test_a_title_written_over_the_arguments_gives_its_first_word(
    executable: str, title: str, name: str
) -> None:
    """Programs that rewrite their arguments leave one text with blanks; numbers in it name nothing."""
    assert service_of(run_by(executable, title)) == name


@pytest.mark.parametrize(
    ("executable", "args", "name", "needed"),
    [
        ("java", ("java", "-cp", "/opt/kafka/libs/a.jar:/opt/kaf…"), "java", True),
        ("python3.11", ("python3", "/srv/very/long/pa…"), "python", True),
        ("python3.11", ("python3", "-m", "shop.wor…"), "python", True),
        ("python3.11", ("python3", "app.py", "--config=/etc/sho…"), "app.py", False),
        ("python3.11", ("gunicor…",), "python", True),
        ("ruby", ("ruby", "/usr/bin/bundle", "exec", "pu…"), "ruby", True),
        ("node", ("node", "app.js"), "app.js", False),
        ("nginx", ("nginx: worker proces…",), "nginx", False),
    ],
)
def test_half_a_name_is_no_name(executable: str, args: tuple[str, ...], name: str, needed: bool) -> None:
    """A target that was cut short is not used, and the caller is told that more arguments would help."""
    info = run_by(executable, *args)
    assert service_of(info) == name
    assert needs_full_args(info) is needed


@pytest.mark.parametrize(
    ("executable", "comm", "args", "name"),
    [
        ("redis-check-rdb", "redis-server", ("redis-server *:6379",), "redis-server"),
        ("vim.basic", "vi", ("vi", "notes"), "vi"),
        ("very-long-program", "a-long-programm", ("/usr/bin/a-long-programme",), "a-long-programme"),
        ("nginx", "nginx", ("nginx: worker process",), "nginx"),
        ("systemd", "systemd", ("/sbin/init",), "systemd"),
        ("mysqld", "connection", ("/usr/sbin/mysqld",), "mysqld"),
        ("server", "server", (), "server"),
    ],
)
def test_a_program_started_by_a_link_is_called_by_the_link(
    executable: str, comm: str, args: tuple[str, ...], name: str
) -> None:
    """Debian's redis-server is a link to redis-check-rdb: what was typed counts, if comm agrees."""
    assert service_of(ProcessInfo(ProcessKey(1, 1, 0), executable, comm, args, ())) == name
