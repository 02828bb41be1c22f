"""HTTP/1: sockets, connections, routes and the page."""
