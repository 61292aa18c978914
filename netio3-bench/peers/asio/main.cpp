// asio: one thread in an `io_context`, a socket without Nagle's delay, and frames of a length of four bytes and a message.
// Messages below 4 KiB are copied together, 128 KiB for each write; longer ones are gathered where they lie.
//
//     asio-peer serve TASK SIZE SECONDS
//     asio-peer drive TASK SIZE SECONDS ADDRESS
//
// What is measured and checked, and what is said when, is as in ../src/job.rs.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include <asio.hpp>

using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::size_t LENGTH_LEN = 4;
constexpr std::size_t HEAD_LEN = 8;
constexpr std::uint64_t QUESTION = UINT64_MAX;
/// Bytes that are read at once, and written at once.
constexpr std::size_t BUFFER = 128 << 10;
/// Gathered bytes that are written at once.
constexpr std::size_t GATHERED = 512 << 10;
/// Pieces of one write: asio passes no more on in one call.
constexpr std::size_t PIECES = 64;
/// Shorter messages are copied.
constexpr std::size_t GATHER_FROM = 4 << 10;
/// Round trips that are not counted.
constexpr std::uint64_t WARM_UP = 100;
/// The time without any progress after which the other side counts as gone.
constexpr std::chrono::seconds STALL_LIMIT{10};

struct Job {
    bool transfer;
    std::size_t size;
    Clock::duration time;
};

/// Frames as they come in.
class Reader {
public:
    Reader(tcp::socket& socket, std::size_t longest) : socket_(socket), memory_(std::max(BUFFER, LENGTH_LEN + longest)) {}

    /// Reads on and on, and gives each message to `take`, until that says no or the other side ends.
    void run(std::function<bool(const char*, std::size_t)> take) {
        take_ = std::move(take);
        read();
    }

    bool has_ended() const { return ended_; }

private:
    void read() {
        if (start_ > 0) {
            std::memmove(memory_.data(), memory_.data() + start_, end_ - start_);
            end_ -= start_;
            start_ = 0;
        }
        auto room = asio::buffer(memory_.data() + end_, memory_.size() - end_);
        socket_.async_read_some(room, [this](asio::error_code error, std::size_t n) {
            if (error == asio::error::eof && start_ == end_) {
                ended_ = true;
                return;
            }
            if (error) {
                throw asio::system_error(error);
            }
            end_ += n;
            if (parse()) {
                read();
            }
        });
    }

    bool parse() {
        while (end_ - start_ >= LENGTH_LEN) {
            std::uint32_t length;
            std::memcpy(&length, memory_.data() + start_, LENGTH_LEN);
            if (length > memory_.size() - LENGTH_LEN) {
                throw std::runtime_error("a message is longer than agreed");
            }
            if (end_ - start_ < LENGTH_LEN + length) {
                break;
            }
            const char* message = memory_.data() + start_ + LENGTH_LEN;
            start_ += LENGTH_LEN + length;
            if (!take_(message, length)) {
                return false;
            }
        }
        return true;
    }

    tcp::socket& socket_;
    std::vector<char> memory_;
    std::size_t start_ = 0;
    std::size_t end_ = 0;
    bool ended_ = false;
    std::function<bool(const char*, std::size_t)> take_;
};

std::uint64_t number_of(const char* message, std::size_t length) {
    if (length < HEAD_LEN) {
        throw std::runtime_error("a message without a number arrived");
    }
    std::uint64_t number;
    std::memcpy(&number, message, HEAD_LEN);
    return number;
}

/// Adds a frame: length, number, and the rest of the message.
void append(std::vector<char>& to, std::uint64_t number, const char* rest, std::size_t rest_len) {
    std::uint32_t length = HEAD_LEN + rest_len;
    std::size_t at = to.size();
    to.resize(at + LENGTH_LEN + length);
    std::memcpy(&to[at], &length, LENGTH_LEN);
    std::memcpy(&to[at + LENGTH_LEN], &number, HEAD_LEN);
    std::memcpy(&to[at + LENGTH_LEN + HEAD_LEN], rest, rest_len);
}

void write_all(tcp::socket& socket, const std::vector<char>& bytes, std::function<void()> then) {
    asio::async_write(socket, asio::buffer(bytes), [then = std::move(then)](asio::error_code error, std::size_t) {
        if (error) {
            throw asio::system_error(error);
        }
        then();
    });
}

/// Runs until nothing is left to do, or for the time that there is.
template <class Done>
void run(asio::io_context& io, const Job& job, Done done) {
    io.run_for(job.time + STALL_LIMIT);
    if (!done()) {
        throw std::runtime_error("the other side says nothing");
    }
}

void serve(const Job& job) {
    asio::io_context io(1);
    tcp::acceptor acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    std::cout << acceptor.local_endpoint() << std::endl;
    tcp::socket socket(io);
    bool accepted = false;
    acceptor.async_accept(socket, [&](asio::error_code error) {
        if (error) {
            throw asio::system_error(error);
        }
        accepted = true;
    });
    run(io, job, [&] { return accepted; });
    io.restart();
    socket.set_option(tcp::no_delay(true));

    Reader reader(socket, job.size);
    std::vector<char> reply;
    std::uint64_t arrived = 0;
    std::function<bool(const char*, std::size_t)> take = [&](const char* message, std::size_t length) {
        std::uint64_t number = number_of(message, length);
        reply.clear();
        if (length == job.size && number == arrived) {
            arrived += 1;
            if (job.transfer) {
                return true;
            }
            append(reply, number, message + HEAD_LEN, length - HEAD_LEN);
        } else if (length == HEAD_LEN && number == QUESTION) {
            append(reply, arrived, nullptr, 0);
        } else {
            throw std::runtime_error("message " + std::to_string(arrived) + " was expected, and " + std::to_string(number) + " of " +
                                     std::to_string(length) + " bytes arrived");
        }
        // Nothing else comes before the reply is there.
        write_all(socket, reply, [&] { reader.run(take); });
        return false;
    };
    reader.run(take);
    run(io, job, [&] { return reader.has_ended(); });
}

/// Sends as fast as it can.
class Sender {
public:
    Sender(tcp::socket& socket, const Job& job)
        : socket_(socket), job_(job), every_(std::clamp<std::uint64_t>(65536 / job.size, 1, 64)), rest_(job.size - HEAD_LEN, 'Z') {}

    void send() {
        out_.clear();
        pieces_.clear();
        bool over = rest_.size() + HEAD_LEN < GATHER_FROM ? copy() : gather();
        auto then = [this, over](asio::error_code error, std::size_t) {
            if (error) {
                throw asio::system_error(error);
            }
            if (!over) {
                send();
            }
        };
        if (over) {
            append(out_, QUESTION, nullptr, 0);
        }
        if (pieces_.empty()) {
            asio::async_write(socket_, asio::buffer(out_), then);
        } else {
            if (over) {
                pieces_.push_back(asio::buffer(out_));
            }
            asio::async_write(socket_, pieces_, then);
        }
    }

    std::uint64_t sent() const { return sent_; }
    double seconds() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }

private:
    bool is_over() const { return sent_ > 0 && sent_ % every_ == 0 && Clock::now() - began_ >= job_.time; }

    bool copy() {
        while (out_.size() < BUFFER) {
            if (is_over()) {
                return true;
            }
            append(out_, sent_++, rest_.data(), rest_.size());
        }
        return false;
    }

    bool gather() {
        std::size_t count = std::min(PIECES / 2 - 1, std::max<std::size_t>(GATHERED / job_.size, 1));
        heads_.resize(count);
        for (auto& head : heads_) {
            if (is_over()) {
                return true;
            }
            std::uint32_t length = job_.size;
            std::memcpy(head.data(), &length, LENGTH_LEN);
            std::memcpy(head.data() + LENGTH_LEN, &sent_, HEAD_LEN);
            sent_ += 1;
            pieces_.push_back(asio::buffer(head));
            pieces_.push_back(asio::buffer(rest_));
        }
        return false;
    }

    tcp::socket& socket_;
    Job job_;
    std::uint64_t every_;
    std::vector<char> rest_;
    std::vector<char> out_;
    std::vector<std::array<char, LENGTH_LEN + HEAD_LEN>> heads_;
    std::vector<asio::const_buffer> pieces_;
    Clock::time_point began_ = Clock::now();
    std::uint64_t sent_ = 0;
};

void drive_transfer(asio::io_context& io, tcp::socket& socket, const Job& job) {
    Reader reader(socket, HEAD_LEN);
    Sender sender(socket, job);
    bool answered = false;
    reader.run([&](const char* message, std::size_t length) {
        std::uint64_t arrived = number_of(message, length);
        double seconds = sender.seconds();
        if (arrived != sender.sent()) {
            throw std::runtime_error(std::to_string(sender.sent()) + " messages were sent and " + std::to_string(arrived) + " arrived");
        }
        std::printf("{\"transfer\":{\"messages\":%llu,\"seconds\":%.9f}}\n", static_cast<unsigned long long>(arrived), seconds);
        answered = true;
        return false;
    });
    sender.send();
    run(io, job, [&] { return answered; });
}

void drive_round_trips(asio::io_context& io, tcp::socket& socket, const Job& job) {
    Reader reader(socket, job.size);
    std::vector<char> rest(job.size - HEAD_LEN, 'Z');
    std::vector<char> out;
    std::vector<std::uint64_t> times;
    std::uint64_t sequence = 0;
    Clock::time_point began = Clock::now();
    Clock::time_point sent_at;
    bool done = false;
    // False when time is up.
    auto next = [&] {
        sent_at = Clock::now();
        if (!times.empty() && sent_at - began >= job.time) {
            done = true;
            return false;
        }
        out.clear();
        append(out, sequence, rest.data(), rest.size());
        write_all(socket, out, [] {});
        return true;
    };
    reader.run([&](const char* message, std::size_t length) {
        auto time = Clock::now() - sent_at;
        if (length != job.size || number_of(message, length) != sequence) {
            throw std::runtime_error("something else came back");
        }
        sequence += 1;
        if (sequence > WARM_UP) {
            times.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
        }
        return next();
    });
    next();
    run(io, job, [&] { return done; });
    std::sort(times.begin(), times.end());
    auto at = [&](double quantile) { return times[static_cast<std::size_t>(quantile * (times.size() - 1))] / 1e3; };
    std::printf("{\"round_trips\":{\"p50_us\":%.3f,\"p99_us\":%.3f}}\n", at(0.5), at(0.99));
}

void drive(const Job& job, const std::string& address) {
    asio::io_context io(1);
    tcp::socket socket(io);
    std::size_t colon = address.rfind(':');
    if (colon == std::string::npos) {
        throw std::runtime_error("`" + address + "` is no address with a port");
    }
    tcp::endpoint peer(asio::ip::make_address(address.substr(0, colon)), static_cast<std::uint16_t>(std::stoul(address.substr(colon + 1))));
    asio::error_code error;
    socket.connect(peer, error);
    if (error) {
        throw std::runtime_error("cannot connect to " + address + ": " + error.message());
    }
    socket.set_option(tcp::no_delay(true));
    if (job.transfer) {
        drive_transfer(io, socket, job);
    } else {
        drive_round_trips(io, socket, job);
    }
}

}  // namespace

int main(int count, char** arguments) {
    try {
        std::vector<std::string> given(arguments + 1, arguments + count);
        if (given.size() < 4) {
            throw std::runtime_error("too few arguments");
        }
        auto time = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::stod(given[3])));
        Job job{given[1] == "transfer", std::stoul(given[2]), time};
        if (given[0] == "serve") {
            serve(job);
        } else {
            drive(job, given.at(4));
        }
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "netio3-peers: " << error.what() << std::endl;
        return 1;
    }
}
