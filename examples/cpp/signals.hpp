// Turns Ctrl-C and SIGTERM into ordinary calls on a thread of their own, where all functions may be called.

#ifndef SIGNALS_HPP
#define SIGNALS_HPP

#include <atomic>
#include <csignal>
#include <functional>
#include <thread>
#include <utility>

/// Calls a function for each SIGINT and SIGTERM. Make it before other threads start, because they must inherit that
/// these two signals are blocked.
class Signals {
public:
    explicit Signals(std::function<void()> call) {
        sigemptyset(&set_);
        sigaddset(&set_, SIGINT);
        sigaddset(&set_, SIGTERM);
        pthread_sigmask(SIG_BLOCK, &set_, nullptr);
        thread_ = std::thread([this, call = std::move(call)] {
            int signal = 0;
            while (sigwait(&set_, &signal) == 0 && !ended_) call();
        });
    }
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;
    ~Signals() {
        ended_ = true;
        pthread_kill(thread_.native_handle(), SIGTERM);
        thread_.join();
    }

private:
    sigset_t set_{};
    std::atomic<bool> ended_{false};
    std::thread thread_;
};

#endif
