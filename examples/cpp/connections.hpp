// The open connections of a server, each with a time limit. Each connection takes a thread and a socket, even if its
// client asks for nothing, so an idle one must not stay open for ever.

#ifndef CONNECTIONS_HPP
#define CONNECTIONS_HPP

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include <sys/ioctl.h>
#include <sys/socket.h>

using Clock = std::chrono::steady_clock;

class Connections {
public:
    /// This many connections more than the limit, so that new clients get an answer (503) when all others are busy.
    static constexpr std::size_t spare = 16;

    /// A connection, which either waits for its client's next request or answers one.
    struct Connection {
        int socket = -1;
        bool waits = true;
        bool begun = false; ///< The head of its request has come.
        bool shut = false;
        Clock::time_point since{}; ///< When it began to wait or to answer.
        Clock::time_point until{}; ///< When it is shut down.
        Clock::time_point last{};  ///< `until` is never later than this.
    };

    /// If there are more than `most` connections, one that waits is closed. A client has the time `patience` to send a
    /// whole request. If its body takes longer, it gets the answer `late`.
    Connections(std::size_t most, std::chrono::seconds patience, std::string late)
        : most_(most), patience_(patience), late_(std::move(late)) {
        watch_ = std::thread([this] { watch(); });
    }
    Connections(const Connections&) = delete;
    Connections& operator=(const Connections&) = delete;
    ~Connections() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        changed_.notify_all();
        watch_.join();
    }

    /// Waits until one more connection is allowed; false if the server is ending.
    bool wait_for_room() {
        std::unique_lock lock(mutex_);
        for (bool asked = false; !draining_; asked = true) {
            if (all_.size() < most_) return true;
            make_room();
            if (asked && all_.size() < most_ + spare) return true;
            changed_.wait_for(lock, std::chrono::milliseconds(2));
        }
        return false;
    }

    void opened(int socket) {
        const std::lock_guard lock(mutex_);
        Connection& connection = all_[socket] = {};
        connection.socket = socket;
        wait(connection);
    }

    Connection& at(int socket) {
        const std::lock_guard lock(mutex_);
        return all_.at(socket);
    }

    /// To be called last for a connection, before its socket is closed.
    void closed(int socket) {
        const std::lock_guard lock(mutex_);
        all_.erase(socket);
        changed_.notify_all();
    }

    /// To be called when a request is answered: the connection waits for the next one.
    void waits(Connection& connection) {
        const std::lock_guard lock(mutex_);
        wait(connection);
        changed_.notify_all();
    }

    /// To be called when the head of a request has arrived.
    void begun(Connection& connection) {
        const std::lock_guard lock(mutex_);
        connection.begun = true;
    }

    /// To be called when the whole request has arrived; the whole answer may take as long as `limit`.
    void answers(Connection& connection, std::chrono::seconds limit) {
        const std::lock_guard lock(mutex_);
        begin(connection, false, limit);
    }

    /// To be called at the beginning of a step of the answer, which may take as long as `limit`.
    void limit(Connection& connection, std::chrono::seconds limit) {
        const std::lock_guard lock(mutex_);
        connection.until = std::min(Clock::now() + limit, connection.last);
    }

    /// Whether more requests are being answered than the limit of connections.
    bool too_many_answers() {
        const std::lock_guard lock(mutex_);
        return answering() > most_;
    }

    /// From now on, a connection is closed after its answer. Returns when no request is being answered.
    void drain() {
        std::unique_lock lock(mutex_);
        draining_ = true;
        for (auto& [socket, connection] : all_)
            if (connection.waits) shut(connection);
        changed_.wait(lock, [&] { return answering() == 0; });
    }

    /// Makes all connections end within this time.
    void end_within(std::chrono::seconds limit) {
        const std::lock_guard lock(mutex_);
        last_ = Clock::now() + limit;
        for (auto& [socket, connection] : all_) {
            connection.last = std::min(connection.last, last_);
            connection.until = std::min(connection.until, last_);
        }
    }

private:
    void begin(Connection& connection, bool waits, std::chrono::seconds limit) {
        connection.waits = waits;
        connection.begun = false;
        connection.since = Clock::now();
        connection.until = connection.last = std::min(connection.since + limit, last_);
    }

    void wait(Connection& connection) {
        begin(connection, true, patience_);
        if (draining_) shut(connection);
    }

    std::size_t answering() const {
        std::size_t n = 0;
        for (const auto& [socket, connection] : all_) n += !connection.waits;
        return n;
    }

    /// Shuts down the connection that has waited longest, if it has waited for some time. If there are unread bytes, it
    /// does not count as waiting: then the server is slow, not the client.
    void make_room() {
        Connection* longest = nullptr;
        const auto recent = Clock::now() - std::chrono::milliseconds(50);
        for (auto& [socket, connection] : all_) {
            int unread = 0;
            if (!connection.waits || connection.shut || connection.since > recent) continue;
            if (ioctl(socket, FIONREAD, &unread) != 0 || unread > 0) continue;
            if (!longest || connection.since < longest->since) longest = &connection;
        }
        if (longest) shut(*longest);
    }

    /// Shuts a connection down. Its thread then reads the end of the connection, and closes it.
    static void shut(Connection& connection) {
        connection.shut = true;
        ::shutdown(connection.socket, SHUT_RDWR);
    }

    void watch() {
        for (std::unique_lock lock(mutex_); !ended_;) {
            changed_.wait_for(lock, std::chrono::milliseconds(100), [&] { return ended_; });
            const auto now = Clock::now();
            for (auto& [socket, connection] : all_)
                if (!connection.shut && now > connection.until) {
                    if (connection.begun) ::send(socket, late_.data(), late_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
                    shut(connection);
                }
        }
    }

    const std::size_t most_;
    const std::chrono::seconds patience_;
    const std::string late_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::map<int, Connection> all_; // by socket
    Clock::time_point last_ = Clock::time_point::max();
    bool draining_ = false, ended_ = false;
    std::thread watch_;
};

#endif
