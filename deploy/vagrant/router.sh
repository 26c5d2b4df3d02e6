#!/usr/bin/env bash
# Upstream of the gateways: a router whose firewall lets through what comes from egress IPs and nothing else, and a server
# behind it that says who asks.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/plan.sh" 2>/dev/null || . /vagrant/deploy/vagrant/plan.sh
packages python3-minimal
echo 'net.ipv4.ip_forward=1' >/etc/sysctl.d/60-router.conf

cat >/etc/nftables.conf <<EOF
#!/usr/sbin/nft -f
table inet upstream
delete table inet upstream
table inet upstream {
  counter permitted { }
  counter refused { }
  chain input {
    type filter hook input priority filter; policy accept;
    ip daddr $SERVER ip saddr $EGRESS_RANGE counter name permitted accept
    ip daddr $SERVER counter name refused log prefix "upstream refused: " drop
  }
}
EOF
# The server's address is on the router itself.
cat >/etc/systemd/system/upstream.service <<EOF
[Unit]
Description=Firewall and server upstream of Sluice
After=network.target
[Service]
ExecStartPre=/sbin/sysctl -q -p /etc/sysctl.d/60-router.conf
ExecStartPre=/usr/sbin/nft -f /etc/nftables.conf
ExecStartPre=-/sbin/ip address add $SERVER/32 dev lo
ExecStart=/usr/bin/python3 /usr/local/lib/who.py $SERVER 80
Restart=always
[Install]
WantedBy=multi-user.target
EOF
install -d /usr/local/lib
cat >/usr/local/lib/who.py <<'EOF'
"""Answers each connection with the address that it came from, as HTTP."""
import socketserver, sys

class Who(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            pass
        body = (self.client_address[0] + "\n").encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer((sys.argv[1], int(sys.argv[2])), Who).serve_forever()
EOF
service upstream.service
