// A small HTTP server based on libmicrohttpd. It has a thread for each connection, and limits for everything that a
// client can send or keep waiting. The library limits the head of a request (431, 414), and answers with 400 if it is
// not HTTP.

#ifndef HTTP_HPP
#define HTTP_HPP

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <microhttpd.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connections.hpp"

namespace http {

struct Limits {
    std::size_t connections = 128;    ///< At once; a thread each.
    std::size_t body = 1 << 20;       ///< Bytes of a request's body.
    std::chrono::seconds client{10};  ///< For a client to send a whole request, or to take a part of an answer.
    std::chrono::seconds answer{300}; ///< For the server to compute the next part of an answer.

    /// Bytes of memory that a connection has for the heads of requests, which also limits their size.
    static constexpr std::size_t head = 32 << 10;
};

/// The client of a request, while it is being answered.
class Client {
public:
    enum State {
        present,
        quiet, ///< Sends nothing any more: it has gone, or has closed its half only. A write shows which.
        gone,
    };

    explicit Client(int socket) : socket_(socket) {}
    State state() const {
        pollfd poll = {socket_, POLLRDHUP, 0};
        ::poll(&poll, 1, 0);
        if (poll.revents & (POLLERR | POLLHUP | POLLNVAL)) return gone;
        return poll.revents & POLLRDHUP ? quiet : present;
    }

private:
    int socket_;
};

struct Request {
    std::string body;
    Client client;
    bool one_too_many; ///< More requests are being answered than the limit of connections.
};

struct Reply {
    unsigned status = 200;
    std::string body{};
    const char* type = "application/json";
    /// Appends the next part of a reply of unknown length, waiting for it; false at the end. Cuts the connection if it
    /// throws.
    std::function<bool(std::string& part)> more{};
    std::string allow{}; ///< The allowed methods, for a 405.
};

class Server {
public:
    using Handler = std::function<Reply(Request)>;
    /// Makes the reply if a handler throws.
    using OnError = std::function<Reply(std::exception_ptr)>;
    /// Makes the reply if the server itself refuses a request.
    using Refusal = std::function<Reply(unsigned status, const std::string& reason)>;

    Server(const Limits& limits, OnError on_error, Refusal refusal)
        : limits_(limits), on_error_(std::move(on_error)), refusal_(std::move(refusal)) {}
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

    void get(const std::string& path, Handler handler) { routes_[path] = {{"GET", "HEAD"}, std::move(handler)}; }
    void post(const std::string& path, Handler handler) { routes_[path] = {{"POST"}, std::move(handler)}; }

    /// Binds an address, with any free port for 0, and returns its URL. Nobody can connect yet.
    std::string bind(const std::string& host, int port) {
        addrinfo hints = {}, *found = nullptr;
        hints.ai_socktype = SOCK_STREAM;
        hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
        if (const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found))
            throw std::invalid_argument("--host: expected an address of this machine, got " + host + ": " +
                                        gai_strerror(error));
        const std::unique_ptr<addrinfo, void (*)(addrinfo*)> address(found, freeaddrinfo);
        socket_ = ::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const int yes = 1, kept = 256 << 10; // bytes of an answer that the system buffers for each client
        sockaddr_in6 bound = {}; // the port is at the same place in each family's
        socklen_t size = sizeof bound;
        setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        setsockopt(socket_, SOL_SOCKET, SO_SNDBUF, &kept, sizeof kept);
        if (::bind(socket_, address->ai_addr, address->ai_addrlen) != 0 ||
            getsockname(socket_, reinterpret_cast<sockaddr*>(&bound), &size) != 0)
            throw cannot_listen(host + " port " + std::to_string(port));
        const bool colons = host.find(':') != std::string::npos;
        return url_ = "http://" + (colons ? "[" + host + "]" : host) + ":" + std::to_string(ntohs(bound.sin6_port));
    }

    /// Starts to serve at the address of `bind`.
    void start() {
        if (::listen(socket_, SOMAXCONN) != 0) throw cannot_listen(url_);
        const std::string late =
            "expected a whole request within " + std::to_string(limits_.client.count()) + " s, got a part";
        connections_.emplace(limits_.connections, limits_.client, written(refusal_(408, late)));
        daemon_ = MHD_start_daemon(
            MHD_USE_POLL_INTERNAL_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_ITC | MHD_USE_NO_LISTEN_SOCKET, 0,
            nullptr, nullptr, on_request, this, MHD_OPTION_CONNECTION_LIMIT,
            unsigned(limits_.connections + Connections::spare + 1), MHD_OPTION_CONNECTION_MEMORY_LIMIT,
            std::size_t(Limits::head), MHD_OPTION_NOTIFY_CONNECTION, on_connection, this, MHD_OPTION_NOTIFY_COMPLETED,
            on_completed, this, MHD_OPTION_END);
        if (!daemon_) throw std::runtime_error("cannot start the HTTP server");
        accepting_ = std::thread([this] { accept_all(); });
        running_ = true;
    }

    /// Waits for `stop`, and then until all running requests have ended.
    void wait() {
        stopped_.get_future().wait();
        ::shutdown(socket_, SHUT_RDWR); // ends `accept`
        connections_->drain();
        accepting_.join();
        ::close(socket_);
        MHD_stop_daemon(daemon_);
    }

    bool running() const { return running_; }
    /// Ends the server. To be called once.
    void stop() { stopped_.set_value(); }
    /// After `stop`, limits how long to wait for clients that do not read their answers.
    void end_within(std::chrono::seconds limit) { connections_->end_within(limit); }

private:
    struct Route {
        std::vector<std::string> methods;
        Handler handler;

        std::string allowed() const {
            std::string all;
            for (const std::string& method : methods) all += (all.empty() ? "" : ", ") + method;
            return all;
        }
    };

    /// A request, and its reply.
    struct Exchange {
        Server& server;
        Connections::Connection& connection;
        const Route* route = nullptr;
        std::string body{};
        Reply reply{};
        bool refused = false;    ///< Answered before the whole request has come.
        bool ended = false;      ///< `reply.more` has returned false.
        std::size_t written = 0; ///< Bytes of `reply.body` that are written.
    };

    void accept_all() {
        while (connections_->wait_for_room()) {
            sockaddr_storage address = {};
            socklen_t size = sizeof address;
            const int socket =
                ::accept4(socket_, reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (socket < 0) { // the client has gone; or the system has no resources, and may have some later
                if (errno != ECONNABORTED && errno != EINTR) std::this_thread::sleep_for(std::chrono::milliseconds(20));
                continue;
            }
            connections_->opened(socket);
            if (MHD_add_connection(daemon_, socket, reinterpret_cast<sockaddr*>(&address), size) != MHD_YES)
                connections_->closed(socket);
        }
    }

    static Connections::Connection& connection_of(MHD_Connection* connection) {
        return *static_cast<Connections::Connection*>(
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context);
    }

    static void on_connection(void* self, MHD_Connection* connection, void** context,
                              MHD_ConnectionNotificationCode what) {
        Connections& all = *static_cast<Server*>(self)->connections_;
        const int socket = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        if (what == MHD_CONNECTION_NOTIFY_STARTED) *context = &all.at(socket);
        else all.closed(socket);
    }

    static void on_completed(void* self, MHD_Connection*, void** state, MHD_RequestTerminationCode) {
        const std::unique_ptr<Exchange> exchange(static_cast<Exchange*>(*state));
        Connections::Connection& connection = exchange->connection;
        exchange->reply.more = nullptr; // frees what it holds first
        static_cast<Server*>(self)->connections_->waits(connection);
    }

    /// Called with the head of a request, with each part of its body, and at its end.
    static MHD_Result on_request(void* cls, MHD_Connection* connection, const char* path, const char* method,
                                 const char*, const char* data, std::size_t* size, void** state) {
        Server& self = *static_cast<Server*>(cls);
        try {
            if (!*state) {
                auto* exchange = new Exchange{self, connection_of(connection)};
                *state = exchange;
                self.on_head(*exchange, connection, path, method);
                return MHD_YES;
            }
            Exchange& exchange = *static_cast<Exchange*>(*state);
            if (*size > 0) {
                self.on_body(exchange, data, *size);
                *size = 0;
                return MHD_YES;
            }
            if (exchange.refused) return MHD_NO;
            return self.answer(exchange, connection);
        } catch (...) { // out of memory
            return MHD_NO;
        }
    }

    /// What the head of a request says about its body.
    struct Framing {
        std::size_t lengths = 0, codings = 0; ///< Number of headers that say where the body ends.
        std::string length{}, coding{};
        bool packed = false;
        bool spaced = false; ///< There is a header name with a space, which some programs ignore.
    };

    static MHD_Result on_header(void* cls, MHD_ValueKind, const char* name, const char* value) {
        Framing& framing = *static_cast<Framing*>(cls);
        const std::string text = value ? value : "";
        if (strcasecmp(name, "Content-Length") == 0) ++framing.lengths, framing.length = text;
        else if (strcasecmp(name, "Transfer-Encoding") == 0) ++framing.codings, framing.coding = text;
        else if (strcasecmp(name, "Content-Encoding") == 0) framing.packed |= strcasecmp(text.c_str(), "identity") != 0;
        framing.spaced |= std::strpbrk(name, " \t") != nullptr;
        return MHD_YES;
    }

    void on_head(Exchange& exchange, MHD_Connection* connection, const char* path, const std::string& method) {
        Framing framing;
        MHD_get_connection_values(connection, MHD_HEADER_KIND, on_header, &framing);
        const bool has_body = framing.codings > 0 || (framing.lengths > 0 && framing.length != "0");
        const bool odd = framing.spaced || framing.lengths + framing.codings > 1 ||
                         (framing.codings > 0 && strcasecmp(framing.coding.c_str(), "chunked") != 0);
        const auto refuse = [&](unsigned status, const std::string& reason, const std::string& allowed = "") {
            exchange.reply = refusal_(status, reason);
            exchange.reply.allow = allowed;
            if (has_body || odd) answer_now(exchange);
        };
        // If a proxy and this server disagree about the end of a request, one of them reads two requests (request
        // smuggling).
        if (odd)
            return refuse(400, "expected one Content-Length, or Transfer-Encoding: chunked");
        const auto route = routes_.find(path);
        if (route == routes_.end()) return refuse(404, "there is nothing at this path");
        const auto& methods = route->second.methods;
        if (std::find(methods.begin(), methods.end(), method) == methods.end()) {
            const std::string allowed = route->second.allowed();
            return refuse(405, "expected " + allowed + ", got " + method, allowed);
        }
        if (framing.packed) return refuse(415, "expected a body without Content-Encoding");
        if (framing.lengths > 0 && std::strtoull(framing.length.c_str(), nullptr, 10) > limits_.body)
            return refuse(413, "expected a body of at most " + std::to_string(limits_.body) + " bytes, got " +
                                   framing.length);
        exchange.route = &route->second;
        connections_->begun(exchange.connection);
    }

    void on_body(Exchange& exchange, const char* data, std::size_t size) {
        if (exchange.refused) return;
        if (exchange.body.size() + size <= limits_.body) {
            exchange.body.append(data, size);
            return;
        }
        exchange.body = {};
        exchange.reply =
            refusal_(413, "expected a body of at most " + std::to_string(limits_.body) + " bytes, got more");
        answer_now(exchange);
    }

    /// A reply that ends its connection.
    static std::string written(const Reply& reply) {
        const auto line = [](const char* name, const std::string& value) { return name + (": " + value) + "\r\n"; };
        return "HTTP/1.1 " + std::to_string(reply.status) + " " + MHD_get_reason_phrase_for(reply.status) + "\r\n" +
               (reply.allow.empty() ? "" : line(MHD_HTTP_HEADER_ALLOW, reply.allow)) +
               line(MHD_HTTP_HEADER_CONTENT_TYPE, reply.type) +
               line(MHD_HTTP_HEADER_CONTENT_LENGTH, std::to_string(reply.body.size())) +
               line(MHD_HTTP_HEADER_CONNECTION, "close") + "\r\n" + reply.body;
    }

    /// Answers before the body has come. The rest of the body is read and thrown away: if a connection is closed with
    /// unread bytes, the client may lose the answer.
    static void answer_now(Exchange& exchange) {
        const std::string text = written(exchange.reply);
        ::send(exchange.connection.socket, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        ::shutdown(exchange.connection.socket, SHUT_WR);
        exchange.refused = true;
    }

    /// The time that a client has to read this many bytes.
    std::chrono::seconds to_take(std::size_t bytes) const { return limits_.client + std::chrono::seconds(bytes >> 16); }

    MHD_Result answer(Exchange& exchange, MHD_Connection* connection) {
        connections_->answers(exchange.connection, limits_.answer + limits_.client);
        if (exchange.route) {
            const bool one_too_many = connections_->too_many_answers();
            try {
                exchange.reply = exchange.route->handler(
                    {std::move(exchange.body), Client(exchange.connection.socket), one_too_many});
            } catch (...) {
                exchange.reply = on_error_(std::current_exception());
            }
        }
        Reply& reply = exchange.reply;
        if (!reply.more) connections_->limit(exchange.connection, to_take(reply.body.size()));
        const std::unique_ptr<MHD_Response, void (*)(MHD_Response*)> response(
            reply.more ? MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 << 10, read, &exchange, nullptr)
                       : MHD_create_response_from_buffer(reply.body.size(), reply.body.data(), MHD_RESPMEM_PERSISTENT),
            MHD_destroy_response);
        if (!response) return MHD_NO;
        MHD_add_response_header(response.get(), MHD_HTTP_HEADER_CONTENT_TYPE, reply.type);
        if (!reply.allow.empty()) MHD_add_response_header(response.get(), MHD_HTTP_HEADER_ALLOW, reply.allow.c_str());
        return MHD_queue_response(connection, reply.status, response.get());
    }

    /// The next part of an answer; called when the client has room for it.
    static ssize_t read(void* cls, std::uint64_t, char* to, std::size_t room) {
        Exchange& exchange = *static_cast<Exchange*>(cls);
        Server& self = exchange.server;
        std::string& part = exchange.reply.body;
        try {
            while (exchange.written == part.size()) {
                if (exchange.ended) return MHD_CONTENT_READER_END_OF_STREAM;
                part.clear();
                exchange.written = 0;
                self.connections_->limit(exchange.connection, self.limits_.answer + self.limits_.client);
                exchange.ended = !exchange.reply.more(part);
                self.connections_->limit(exchange.connection, self.to_take(part.size()));
            }
        } catch (...) {
            return MHD_CONTENT_READER_END_WITH_ERROR;
        }
        const std::size_t n = std::min(room, part.size() - exchange.written);
        std::memcpy(to, part.data() + exchange.written, n);
        exchange.written += n;
        return static_cast<ssize_t>(n);
    }

    static std::runtime_error cannot_listen(const std::string& where) {
        return std::runtime_error("cannot listen on " + where + ": " + std::strerror(errno));
    }

    const Limits limits_;
    const OnError on_error_;
    const Refusal refusal_;
    std::optional<Connections> connections_; // from `start` on
    std::map<std::string, Route> routes_;
    int socket_ = -1; // listens
    std::string url_;
    MHD_Daemon* daemon_ = nullptr;
    std::thread accepting_;
    std::atomic<bool> running_{false};
    std::promise<void> stopped_;
};

} // namespace http

#endif
