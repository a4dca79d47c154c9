// Two functions of libsystemd, which has no static archive, that a static libdbus refers to. It calls them
// for the server address "systemd:" only, which we never use; they say what is true of us: no socket was
// passed.
extern "C" {
int sd_listen_fds(int unsetEnvironment);
int sd_is_socket(int fd, int family, int type, int listening);

int sd_listen_fds(int) {
  return 0;
}
int sd_is_socket(int, int, int, int) {
  return 0;
}
}
