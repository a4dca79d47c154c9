#include "apply/proxy.h"

#include <sys/stat.h>
#include <unistd.h>

#include "build_config.h"
#include "plan/squid.h"
#include "system/host.h"
#include "util/error.h"
#include "util/file.h"
#include "util/process.h"

namespace agentmachine {

void configureProxy(const Settings& settings) {
  inContext("configure the proxy", [&] {
    const FileOwner owner{0, proxyGroup()};
    const std::string directory = settings.runtimeDirectory + "/proxy", certificate = directory + "/peek.pem";
    std::filesystem::create_directories(directory);
    if (chown(directory.c_str(), owner.user, owner.group) < 0 || chmod(directory.c_str(), 0750) < 0)
      throw errnoError("make " + directory + " readable for the proxy");
    // Nobody ever sees it: connections are spliced or cut. A new one at each start, so it never expires in
    // use.
    const auto pem =
        runChecked({"openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-days", "3650", "-subj", "/CN=agentmachine", "-keyout", "-", "-out", "-"});
    writeFileAtomically(certificate, pem, 0640, owner);
    const std::string pages = directory + "/pages";
    std::filesystem::create_directories(pages);
    if (chown(pages.c_str(), owner.user, owner.group) < 0 || chmod(pages.c_str(), 0750) < 0)
      throw errnoError("make " + pages + " readable for the proxy");
    for (const auto& [name, text] : squidErrorPages())
      writeFileAtomically(pages + "/" + name, text, 0640, owner);
    writeFileAtomically(directory + "/squid.conf",
                        renderSquidConf(settings, {.helper = AGENTMACHINE_LIBEXECDIR "/agentmachine-policy",
                                                   .auditor = AGENTMACHINE_LIBEXECDIR "/agentmachine-audit",
                                                   .certificate = certificate,
                                                   .errorPages = pages}),
                        0640, owner);
  });
}

}  // namespace agentmachine
