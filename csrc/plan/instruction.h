// What instructions.def lists, as C++. Plain data, for device code too.
#pragma once

#include <cstdint>

namespace dsn {

enum class Op : int64_t {
#define DSN_OP(id, name, traits) id,
#include "instructions.def"
};
enum class Activation : int64_t {
#define DSN_ACTIVATION(id, name) id,
#include "instructions.def"
};
enum class GateKind : int64_t {
#define DSN_GATE(id, name) id,
#include "instructions.def"
};
enum class Merge : int64_t {
#define DSN_MERGE(id, name) id,
#include "instructions.def"
};
enum class RegionKind : int64_t {
#define DSN_REGION(id, name, description) id,
#include "instructions.def"
};
enum Flags : int64_t {
#define DSN_FLAG(id, name, bit, description) id = bit,
#include "instructions.def"
};

// What is true of all instructions of an op.
enum Trait : uint32_t {
  kReads = 1,            // src
  kWrites = 2,           // dst; an op that does not read fills it, or works in place on it
  kTakesGuide = 4,       // may read a guide
  kPlain = 8,            // works on maps without the slices of a dense block
  kLayered = 16,         // each of its `layers` is a step, two phases of a team, and perhaps a launch
  kNormalises = 32,      // begins with a BN-ReLU
  kWindowed = 64,        // slides a window of pixels over src, channel by channel
  kReadsPooled = 128,    // of src its pooled vector alone
  kLeavesPooled = 256,   // the pooled vector of a whole buffer, of dst or else src
  kOwnsGates = 512,      // the gates from first_gate on
  kLogits = 1024,        // leaves out_channels logits from out_offset on
  kWaits = 2048,         // may run only where a gate is open
  kChooses = 4096,       // a mask may choose its output channels
  kTakesFactor = 16384,  // may scale its input by a pooled vector
  kPasses = 8192,        // largest, mean or single values of a channel: none below zero if src has none
};
constexpr uint32_t traits_of(Op op) {
  switch (op) {
#define DSN_OP(id, name, traits) \
  case Op::id:                   \
    return traits;
#include "instructions.def"
  }
  return 0;
}
constexpr bool has(Op op, Trait trait) { return traits_of(op) & trait; }

// One record of a plan.
struct Instruction {
#define DSN_FIELD(type, name, initial, description) type name = static_cast<type>(initial);
#include "instructions.def"

  // The buffer whose stream it belongs to.
  int64_t home() const { return dst >= 0 ? dst : src; }
  bool normalises() const { return has(op, kNormalises) || flags & kNormalise; }
  int64_t written_channels() const { return out_channels ? out_channels : in_channels; }
  // Its layers where each is a step of its own.
  int64_t inner_steps() const { return has(op, kLayered) ? layers : 0; }
};

// Calls visit with each field of an instruction, in the order of a plan's words.
template <class Record, class Visit>
constexpr void each_field(Record& in, const Visit& visit) {
#define DSN_FIELD(type, name, initial, description) visit(in.name);
#include "instructions.def"
}
constexpr int kInstructionFields = 0
#define DSN_FIELD(type, name, initial, description) +1
#include "instructions.def"
    ;

// The first word of a plan: a version of what its words mean, which a change raises that the list does not show, and a
// hash (FNV-1a) of the list.
constexpr int64_t plan_format() {
  constexpr uint32_t kVersion = 2;
  constexpr char kList[] =
#define DSN_OP(id, name, traits) "op " #name " " #traits "\n"
#define DSN_WEIGHT(op, name, ...) "weight " #op " " #name " " #__VA_ARGS__ "\n"
#define DSN_FIELD(type, name, initial, description) #type " " #name " " #initial "\n"
#define DSN_FLAG(id, name, bit, description) "flag " #name " " #bit "\n"
#define DSN_ACTIVATION(id, name) "activation " #name "\n"
#define DSN_GATE(id, name) "gate " #name "\n"
#define DSN_MERGE(id, name) "merge " #name "\n"
#define DSN_REGION(id, name, description) "region " #name "\n"
#include "instructions.def"
      ;
  uint32_t hash = 2166136261u;
  for (char c : kList) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return int64_t{kVersion} << 32 | hash;
}
constexpr int64_t kPlanFormat = plan_format();

}  // namespace dsn
