// Prepares the filtering proxy: its configuration, and the certificate that squid wants for looking into TLS.
#pragma once
#include "plan/host.h"

namespace agentmachine {

/// ExecStartPre= of agentmachine-proxy.service. Writes PROXY/squid.conf, PROXY/peek.pem and PROXY/pages/
/// below the runtime directory, readable by the proxy's user alone.
void configureProxy(const Settings& settings);

}  // namespace agentmachine
