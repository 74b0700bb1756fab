// Threads: the only file that knows OpenMP.
#include "threads.h"

#if defined(_OPENMP)

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace ringnet {
namespace {

double microseconds() {
    using namespace std::chrono;
    return duration<double, std::micro>(steady_clock::now().time_since_epoch()).count();
}

// What teams were worth to this calling thread, in microseconds. On cores that others use too a team waits for a thread that isn't
// running, up to a hundred times as long as its caller needs for the work alone. So what teams save and lose is kept as an account:
// in debt, work too small to make up for another such loss is done alone, until ten times the debt has passed.
struct Account {
    static constexpr double most = 5000;  // credit enough for a hiccup that anybody's thread may have
    double balance = most;
    double alone_until = 0;
};
thread_local Account account;

// Set where this thread was a fork's only one to go on: its helpers are gone, and OpenMP would wait for them for ever.
thread_local bool forked = false;

[[maybe_unused]] const int handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

Team::Team(int threads, double multiply_adds) : size_(1) {
    if (threads <= 1) return;
    double cost = 1;  // of starting a thread, about
    if (account.balance < 0) {
        if (microseconds() < account.alone_until)
            cost = std::max(cost, -account.balance);
        else
            account.balance = 0;
    }
    size_ = static_cast<int>(std::min<double>(threads, 1 + multiply_adds / (30000 * cost)));
}

void Team::start(void (*work)(const void*, Member&), const void* what) {
    Member caller{0, 1};
    if (size_ == 1) return work(what, caller);
    const double began = microseconds();
    double finished = began;
    const auto together = [&] {
#pragma omp parallel num_threads(size_)
        {
            Member member{omp_get_thread_num(), omp_get_num_threads()};
            work(what, member);
            if (member.number == 0) {
                finished = microseconds();
                caller = member;
            }
        }
    };
    if (forked)
        std::thread(together).join();  // whose helpers are new
    else
        together();
    const double took = microseconds() - began, busy = finished - began - caller.waited;
    account.balance = std::min(Account::most, account.balance + busy / caller.share - took);
    if (account.balance < 0) account.alone_until = began + took + std::min(-10 * account.balance, 1e6);
}

void Member::barrier() {
    if (of == 1) return;
    const double came = number == 0 ? microseconds() : 0;
#pragma omp barrier
    if (number == 0) waited += microseconds() - came;
}

}  // namespace ringnet

#else

namespace ringnet {

Team::Team(int, double) : size_(1) {}

void Team::start(void (*work)(const void*, Member&), const void* what) {
    Member caller{0, 1};
    work(what, caller);
}

void Member::barrier() {}

}  // namespace ringnet

#endif
