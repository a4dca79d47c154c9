#!/usr/bin/env python3
"""proxy_test.py AGENTMACHINE: starts the proxy that `agentmachine export kubernetes` makes, by its own script and with
the real squid, and asks it for what it must pass and refuse. Needs root; everything is in namespaces of its own.
Prints "ok NAME" or "not ok NAME - WHY".
"""
import json
import os
import pathlib
import re
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import yaml

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / 'tests/proxy'))
import world  # noqa: E402  the servers, the resolver and the certificate authority of the machines' proxy's test

AGENT, UID = sys.argv[1], 65531
WEB, LLM = '198.51.100.10', '198.51.100.11'
KEY = 'sk-test-0123456789'
CARD = {'agent_id': 'ada', 'workspace': '/mnt/agents/ada', 'api_provider': 'custom', 'model': 'm',
        'api_base_url': 'https://llm.fake.test/openai/v1', 'api_key_file': '/etc/ada.key', 'api_key_header': 'X-Llm-Key',
        'allowed_hosts': ['web.fake.test', '.wild.fake.test', 'GET,HEAD plain.fake.test:80', 'lan.fake.test',
                          'lan.fake.test:80'],
        'resource_limits': {'max_connections': 5}}

directory = pathlib.Path(tempfile.mkdtemp(prefix='agentmachine-export-'))
directory.chmod(0o755)
failed = False


def verdict(name, good, why=''):
    global failed
    print(f'ok {name}' if good else f'not ok {name} - {why}', flush=True)
    failed |= not good


def put(path, content, mode=0o644):
    path.write_text(content)
    path.chmod(mode)


def mount_over(source, target):
    pathlib.Path(target).mkdir(parents=True, exist_ok=True)
    world.run('mount', '--bind', str(source), str(target))


# The version that is named everywhere is the one that is tested here and in the lab.
version = world.run('squid', '-v').split('Version ')[1].split()[0]
named = set()
for name in ('src/export/names.h', 'doc/kubernetes.md', 'nix/module.nix', 'tests/lab/make-images', *map(str, (TOP / 'images/squid').iterdir())):
    named.update(re.findall(r'agentmachine-squid:([\w.]+)', (TOP / name).read_text()))
verdict('export-proxy-version', named == {version}, f'{named} is named, {version} is tested')

card = directory / 'card.json'
put(card, json.dumps(CARD))
manifests = list(yaml.safe_load_all(world.run(AGENT, 'export', 'kubernetes', str(card))))
config = next(item for item in manifests if item['kind'] == 'ConfigMap' and item['metadata']['name'] == 'proxy-ada')

world.enter_own_namespaces()
world.ip('link set lo up\n' + ''.join(f'address add {address}/32 dev lo\n' for address in (WEB, LLM, '10.9.0.1')))
authority, stranger = world.Authority(directory, 'authority'), world.Authority(directory, 'stranger')
web = world.Server(None, WEB, 443, authority.context('web.fake.test', 'a.wild.fake.test'), 'web')
plain = world.Server(None, WEB, 80, None, 'plain')
llm = world.Server(None, LLM, 443, authority.context('llm.fake.test'), 'llm')
lan = world.Server(None, '10.9.0.1', 80, None, 'lan')
resolver = world.Resolver({'web.fake.test': [WEB], 'a.wild.fake.test': [WEB], 'plain.fake.test': [WEB],
                           'unlisted.fake.test': [WEB], 'lan.fake.test': ['10.9.0.1'], 'llm.fake.test': [LLM]})
put(directory / 'resolv.conf', 'nameserver 127.0.0.1\n')
world.run('mount', '--bind', str(directory / 'resolv.conf'), os.path.realpath('/etc/resolv.conf'))
for name in ('config', 'secret', 'run'):
    (directory / name).mkdir()
for name, content in config['data'].items():
    put(directory / 'config' / name, content)
os.chown(directory / 'run', UID, UID)
put(directory / 'secret/api-key', KEY + '\n', 0o440)
os.chown(directory / 'secret/api-key', 0, UID)
mount_over(directory / 'config', '/etc/agentmachine-proxy')
mount_over(directory / 'secret', '/run/secrets/agentmachine')
mount_over(directory / 'run', '/run/squid')
# A pipe, as containers have one; squid opens it once more by its name.
reader, log = os.pipe()
os.fchown(log, UID, UID)
told = []


def listen():
    while block := os.read(reader, 65536):
        told.append(block.decode())


threading.Thread(target=listen, daemon=True).start()


def start():
    squid = subprocess.Popen(['setpriv', f'--reuid={UID}', f'--regid={UID}', '--clear-groups', '--no-new-privs', '--bounding-set=-all',
                              'sh', '/etc/agentmachine-proxy/start'], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                             env={'PATH': '/usr/sbin:/usr/bin:/sbin:/bin', 'SSL_CERT_FILE': str(authority.path)})
    for _ in range(600):
        if squid.poll() is not None:
            raise SystemExit('not ok export-proxy - it ended: ' + ''.join(told)[-2000:])
        try:
            socket.create_connection(('127.0.0.1', 3128), 1).close()
            return squid
        except OSError:
            time.sleep(0.05)  # until it listens; there is nobody to tell us
    raise SystemExit('not ok export-proxy - it does not listen')


def ask(port, request):
    """The status and body of the answer."""
    with socket.create_connection(('127.0.0.1', port), 20) as connection:
        connection.sendall(request.encode())
        answer = world.read_message(connection.makefile('rb'))
        return (answer.status, answer.body) if answer else (0, b'')


def get(url, method='GET'):
    host = url.split('/')[2]
    return ask(3128, f'{method} {url} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')


def tunnel(host, name=None, port=443):
    """(status of CONNECT, what was answered in the tunnel or None)"""
    with socket.create_connection(('127.0.0.1', 3128), 20) as connection:
        connection.sendall(f'CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n'.encode())
        status = world.read_message(connection.makefile('rb', 0), head_only=True).status
        if status != 200:
            return status, None
        context = ssl.create_default_context(cafile=str(authority.path))
        context.check_hostname = False
        try:
            with context.wrap_socket(connection, server_hostname=name or host) as inner:
                inner.sendall(b'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
                return status, world.read_message(inner.makefile('rb')).body
        except (OSError, AttributeError):
            return status, None


def broker(path, method='POST', headers=''):
    return ask(8081, f'{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:8081\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n')


def same(name, actual, expected):
    verdict('export-proxy-' + name, actual == expected, f'{actual}, not {expected}')


squid = start()
same('tunnel', tunnel('web.fake.test'), (200, b'from web'))
same('tunnel-below-wildcard', tunnel('a.wild.fake.test'), (200, b'from web'))
same('refuses-unlisted', tunnel('unlisted.fake.test'), (407, None))
verdict('export-proxy-resolves-nothing-unlisted', 'unlisted.fake.test' not in resolver.asked, resolver.asked)
same('refuses-address', tunnel(WEB), (407, None))
same('refuses-port', tunnel('web.fake.test', port=8443), (407, None))
same('refuses-plain-port', get('http://web.fake.test/')[0], 403)
same('refuses-private', tunnel('lan.fake.test'), (407, None))
same('refuses-private-request', get('http://lan.fake.test/')[0], 403)
same('refuses-other-server-name', tunnel('web.fake.test', 'a.wild.fake.test'), (200, None))
same('plain-request', get('http://plain.fake.test/'), (200, b'from plain'))
same('refuses-method', get('http://plain.fake.test/', 'POST')[0], 403)
same('refuses-tunnel-where-methods-are-listed', tunnel('plain.fake.test', port=80), (407, None))
same('refuses-ftp', ask(3128, 'GET ftp://web.fake.test/ HTTP/1.1\r\nHost: web.fake.test\r\nConnection: close\r\n\r\n')[0], 403)
llm.last()
same('broker', broker('/openai/v1/chat/completions', headers='X-Llm-Key: mine\r\nX_Llm-Key: mine\r\nAuthorization: Bearer mine\r\n'),
     (200, b'from llm'))
request = llm.last()
same('broker-adds-key', request and request.all('x-llm-key'), [KEY])
same('broker-strips-keys', request and request.all('x_llm-key') + request.all('authorization'), [])
same('broker-keeps-path', request and request.start, 'POST /openai/v1/chat/completions HTTP/1.1')
same('broker-names-provider', request and request.all('host'), ['llm.fake.test'])
for name, path in {'other-path': '/other', 'dots': '/openai/v1/../../admin', 'escape': '/openai/v1/%2e%2e/x',
                   'key-in-query': '/openai/v1/models?key=mine'}.items():
    same('broker-refuses-' + name, broker(path, 'GET')[0], 403)
same('broker-refuses-method', broker('/openai/v1/x', 'DELETE')[0], 403)
verdict('export-proxy-broker-passed-none-of-these', llm.last() is None, 'the provider was asked')
# Whatever host is named, it is the provider that is asked.
same('broker-knows-one-host', broker('http://web.fake.test/openai/v1/models', 'GET'), (200, b'from llm'))
request = llm.last()
same('broker-names-provider-then-too', request and request.all('host'), ['llm.fake.test'])
connections = [socket.create_connection(('127.0.0.1', 3128)) for _ in range(6)]
same('refuses-too-many-connections', get('http://plain.fake.test/')[0], 403)
for connection in connections:
    connection.close()
squid.terminate()
squid.wait(30)
text = ''.join(told)
lines = [json.loads(line) for line in text.splitlines() if line.startswith('{')]
seen = {(line['method'], line['host'], line['decision'], line['reason'], line['rule']) for line in lines}
for name, line in {
        'tunnel': ('CONNECT', 'web.fake.test', 'allow', 'listed', '/allowed_hosts/0'),
        'unlisted': ('CONNECT', 'unlisted.fake.test', 'deny', 'not-listed', '-'),
        'private': ('CONNECT', 'lan.fake.test', 'deny', 'private-address', '/allowed_hosts/3'),
        'broker': ('POST', 'llm.fake.test', 'allow', 'provider', '/api_base_url')}.items():
    verdict('export-proxy-logs-' + name, line in seen, sorted(seen))
verdict('export-proxy-logs-other-server-name', any(line['reason'] == 'other-server-name' and line['decision'] == 'deny'
                                                   and line['sni'] == 'a.wild.fake.test' for line in lines), sorted(seen))
verdict('export-proxy-logs-agent', {line['id'] for line in lines} == {'ada'}, lines)
verdict('export-proxy-logs-no-key', KEY not in text, 'the key is in the log')

# Whom it must not believe: a provider with another's certificate. And a key that would write squid's configuration.
llm.context = stranger.context('llm.fake.test')
squid = start()
same('broker-checks-certificate', broker('/openai/v1/x')[0], 503)
squid.terminate()
squid.wait(30)
put(directory / 'secret/api-key', 'x" all\nhttp_access allow all\n', 0o440)
done = subprocess.run(['sh', '/etc/agentmachine-proxy/start'], text=True, capture_output=True)
verdict('export-proxy-refuses-odd-key', done.returncode == 1 and 'must hold one key' in done.stderr, done)

# Many cards at once: processor time, so that others at work don't count.
cards = []
for number in range(200):
    path = directory / f'{number}.json'
    put(path, json.dumps({**CARD, 'agent_id': f'a{number}', 'workspace': f'/mnt/agents/{number}'}))
    cards.append(str(path))
before = resource.getrusage(resource.RUSAGE_CHILDREN)
world.run(AGENT, 'export', 'kubernetes', *cards)
after = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
verdict('export-200-cards-in-a-second', seconds <= 1, f'it took {seconds:.2f} s')
print(f'# 200 cards: {seconds:.2f} s')
sys.exit(failed)
