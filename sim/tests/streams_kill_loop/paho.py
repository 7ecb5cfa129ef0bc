# Publishes with Debian's paho what it is told on stdin, and tells on stdout what it heard:
#
#   connect            -> connected | unreachable WHY
#   publish N, N lines -> puback I for the I-th line, in the order of the PUBACKs; then done | lost WHY
#
# Every connection is a client of its own with a clean session: what was not acknowledged on one is never
# sent again by another. It ends with its stdin.
import sys
import time

import paho.mqtt.client as mqtt

PATIENCE_S = 60
port, topic = int(sys.argv[1]), sys.argv[2]


def say(*words):
    print(*words, flush=True)


def turn(client, deadline):
    """Reads and writes once; why the connection is over, or nothing."""
    code = client.loop(1.0)
    if code != mqtt.MQTT_ERR_SUCCESS:
        return mqtt.error_string(code)
    return "no answer" if time.monotonic() > deadline else None


def connect():
    client = mqtt.Client(client_id="scanner", clean_session=True, protocol=mqtt.MQTTv311)
    heard = []
    client.on_connect = lambda client, data, flags, code: heard.append(code)
    try:
        client.connect("127.0.0.1", port, keepalive=PATIENCE_S)
    except OSError as error:
        return None, str(error)
    deadline, over = time.monotonic() + PATIENCE_S, None
    while not heard and over is None:
        over = turn(client, deadline)
    if not heard or heard[0] != mqtt.CONNACK_ACCEPTED:
        return None, over or mqtt.connack_string(heard[0])
    return client, None


def publish(client, lines):
    """Why the connection is over, or nothing when all are acknowledged."""
    places, left = {}, set()

    def acknowledged(client, data, mid):
        left.discard(mid)
        say("puback", places[mid])

    client.on_publish = acknowledged
    for place, line in enumerate(lines):
        sent = client.publish(topic, line, qos=1)
        if sent.rc != mqtt.MQTT_ERR_SUCCESS:
            return mqtt.error_string(sent.rc)
        places[sent.mid] = place
        left.add(sent.mid)
    deadline, over = time.monotonic() + PATIENCE_S, None
    while left and over is None:
        over = turn(client, deadline)
    # Heard is heard, even if the connection broke behind it.
    return over if left else None


client = None
for command in sys.stdin:
    word, *rest = command.split()
    if word == "connect":
        client, why = connect()
        say("connected" if client else "unreachable", why or "")
    else:
        lines = [sys.stdin.readline().rstrip("\n") for _ in range(int(rest[0]))]
        over = publish(client, lines)
        if over:
            client = None
        say("lost" if over else "done", over or "")
